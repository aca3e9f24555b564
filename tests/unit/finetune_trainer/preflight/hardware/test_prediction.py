"""The predictions of preflight for each GPU type, and the message for a job that does not fit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from finetune_api.quantity import gibibytes
from finetune_api.reasons import FailureReason, sentence
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.status.preflight import Estimate, Resolved
from finetune_trainer.handover.prepared import Example, Side
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.hardware.changes import alternative
from finetune_trainer.preflight.hardware.fitting import require_fit
from finetune_trainer.preflight.hardware.prediction import (
    DataSize,
    data_size,
    estimates,
    first_plan,
    loads,
    setups_of,
    sized,
    unquantized_memory,
)
from finetune_trainer.sizing.memory import GENERATION_FACTOR, Load, Setup, base_memory, predict
from tests.unit.finetune_trainer.preflight.test_resolve import example
from tests.unit.finetune_trainer.sizing.test_memory import SHAPE

LORA, QLORA, FULL = MethodType.LORA, MethodType.QLORA, MethodType.FULL
GIB = 1024**3
TOO_SMALL = GpuType(name="t4", memory="2Gi")
DATA = DataSize(np.full(1000, 500), np.full(1000, 100), longest=2000, answered=100, prompt=400)


def resolved(method: MethodType = MethodType.LORA, micro_batch_tokens: int = 2048) -> Resolved:
    return Resolved(
        method=method,
        learning_rate=2e-4,
        warmup_steps=10,
        total_steps=125,
        max_sequence_length=2000,
        micro_batch_tokens=micro_batch_tokens,
        max_new_tokens=150,
        prompt_format="Plain",
        parameters=SHAPE.parameters,
    )


def spec(**parts: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        {"model": {"uri": "m"}, "dataset": {"train": [{"uri": "d"}]}, "output": {"uri": "o"}} | parts
    )


def estimate(method: MethodType = MethodType.LORA, **gpu: Any) -> Estimate:
    kind = GpuType.model_validate({"name": "h100-80gb"} | gpu)
    (found,) = estimates([kind], spec(), resolved(method), SHAPE, DATA)
    return found


def test_the_longest_row_of_any_side_counts_and_the_longest_prompt_that_is_answered() -> None:
    sides: dict[Side, list[Example]] = {
        "train": [example(10, 5), example(20, 2)],
        "validation": [example(30, 5)],
        "test": [example(25, 1)] * 3,
    }
    found = data_size(sides, max_rows=2)
    assert (found.tokens.tolist(), found.longest, found.answered, found.prompt) == ([15, 22], 35, 2, 25)


def test_a_micro_batch_holds_no_more_than_a_step_and_no_less_than_the_longest_row() -> None:
    few = DataSize(np.array([10, 20, 30, 40]), np.array([1, 2, 3, 4]), longest=40, answered=0, prompt=0)
    assert trained(few, 2, 2048) == [(70, 7), (40, 7)]
    assert trained(few, 8, 2048) == [(100, 10), (50, 10), (40, 10)]
    assert trained(few, 8, 16) == [(40, 10)]


def trained(data: DataSize, rows: int, tokens: int) -> list[tuple[int, int]]:
    """Tokens and labels of the micro-batches that are tried."""
    return list(dict.fromkeys((load.tokens, load.labels) for load in loads(data, rows, resolved(LORA, tokens))))


def test_answering_uses_eight_times_the_tokens_then_half_down_to_one_row() -> None:
    few = DataSize(np.full(9, 40), np.full(9, 4), longest=40, answered=9, prompt=300)
    assert [load.answering for load in loads(few, 1, resolved(LORA, 200))] == [1600, 800, 450, 450]


@pytest.mark.parametrize("method", [LORA, QLORA])
def test_the_evaluation_uses_the_micro_batch_that_is_predicted_to_fit(method: MethodType) -> None:
    data = DataSize(np.full(1000, 240), np.full(1000, 80), longest=300, answered=200, prompt=220)
    least = predict(SHAPE, setups_of(spec(), resolved(method), SHAPE)[0], loads(data, 8, resolved(method))[-1]).total
    for memory in (least, least + GIB, 80 * GIB):
        found, (fit,) = sized([GpuType(name="a10", memory=str(memory))], spec(), resolved(method), SHAPE, data)
        assert fit.fits
        tokens = GENERATION_FACTOR * found.micro_batch_tokens
        held = predict(SHAPE, setups_of(spec(), found, SHAPE)[0], Load(300, 100, tokens)).total
        assert held <= memory, "as finetune_trainer.evaluation.scoring answers"
        assert estimates([GpuType(name="a10", memory=str(memory))], spec(), found, SHAPE, data) == [fit], "of that"
    assert found.micro_batch_tokens == 2048, "where there is room"
    (nobody_says, _), (none_fits, _) = (
        sized(kinds, spec(), resolved(method), SHAPE, data) for kinds in ([GpuType(name="a")], [TOO_SMALL])
    )
    assert nobody_says.micro_batch_tokens == none_fits.micro_batch_tokens == 2048


def test_memory_time_and_cost_are_predicted() -> None:
    found = estimate(memory="81559Mi", pricePerHour="3.00")
    assert found.fits
    assert found.memory.endswith("Gi")
    assert 20 < float(found.memory.removesuffix("Gi")) < 40
    assert found.seconds
    assert 100 < found.seconds < 1000
    assert found.cost == f"{found.seconds * 3 / 3600:.2f}"
    assert found.alternative is None


def test_under_qlora_the_base_model_is_loaded_twice_if_it_fits_in_bf16() -> None:
    assert unquantized_memory(resolved(), SHAPE) is None
    assert unquantized_memory(resolved(QLORA), SHAPE) == gibibytes(base_memory(SHAPE, 2048)) == "21.1Gi"
    small, large, unknown = (
        estimate(QLORA, **gpu).seconds or 0 for gpu in ({"memory": "21Gi"}, {"memory": "23028Mi"}, {})
    )
    assert large - small == pytest.approx(2 * SHAPE.parameters / 500e6, abs=1)
    assert unknown == large


def test_estimates_leave_out_values_that_the_profile_does_not_set() -> None:
    found = estimate(name="gpu")
    assert (found.fits, found.seconds, found.cost) == (None, None, None)
    assert estimate().cost is None


def test_the_setup_uses_the_settings_that_decide_memory() -> None:
    lora = {"r": 8, "dropout": 0.1, "targetModules": ["q_proj"], "useDora": True, "modulesToSave": ["lm_head"]}
    lora |= {"bias": "All"}
    method = {"type": "QLoRA", "lora": lora, "quantization": {"doubleQuant": False, "computeDtype": "Float32"}}
    found, _ = setups_of(spec(method=method, training={"optimizer": "PagedAdamW8bit"}), resolved(QLORA), SHAPE)
    assert found == Setup("QLoRA", "PagedAdamW8bit", False, 8, True, ("q_proj",), True, ("lm_head",), True, False, True)


@pytest.mark.parametrize(
    ("method", "memory", "training", "instead"),
    [
        (
            LORA,
            "24Gi",
            {"gradientCheckpointing": "Disabled"},
            "With spec.training.gradientCheckpointing Auto, the job would need 2",
        ),
        (LORA, "16Gi", {}, "With spec.method.type QLoRA, the job would need 1"),
        (FULL, "120Gi", {}, "With spec.training.optimizer PagedAdamW8bit, the job would need 9"),
        (FULL, "40Gi", {}, "With spec.method.type LoRA, the job would need 2"),
        (QLORA, "9Gi", {}, "With spec.training.maxSequenceLength 1,000, the job would need 8"),
        (LORA, "4Gi", {}, "No method would fit. Choose a smaller model, or use a FineTuneProfile with a larger GPU."),
    ],
)
def test_a_job_that_does_not_fit_gets_a_change_that_fits(
    method: MethodType, memory: str, training: dict[str, str], instead: str
) -> None:
    gpu = GpuType(name="a10", memory=memory)
    (found,) = estimates([gpu], spec(training=training), resolved(method), SHAPE, DATA)
    assert found.fits is False
    assert (found.alternative or "").startswith(instead), found.alternative
    with pytest.raises(TrainerFailure) as caught:
        require_fit([found], [gpu], spec(training=training), resolved(method), SHAPE, DATA)
    said = sentence(caught.value.reason, caught.value.for_the_operator)
    assert caught.value.reason is FailureReason.DOES_NOT_FIT
    assert said.startswith(
        f"The job needs about {found.memory} of GPU memory, but a10 has {memory}. The method is {method}, the model "
        f"has 8 billion parameters, and the longest row has 2,000 tokens. {instead}"
    )


@pytest.mark.parametrize(
    ("method", "memory", "instead"),
    [
        (
            QLORA,
            "16Gi",
            "spec.output.merge needs the model in bfloat16. Without spec.output.merge, the job would need 1",
        ),
        (LORA, "16Gi", "With spec.method.type QLoRA and without spec.output.merge, the job would need 1"),
    ],
)
def test_merging_needs_a_gpu_with_memory_for_the_model_in_bfloat16(
    method: MethodType, memory: str, instead: str
) -> None:
    gpu = GpuType(name="a10", memory=memory)
    (found,) = estimates([gpu], spec(output={"uri": "o", "merge": True}), resolved(method), SHAPE, DATA)
    assert found.fits is False
    assert (found.alternative or "").startswith(instead), found.alternative
    roomy = GpuType(name="l4", memory="24Gi")
    (found,) = estimates([roomy], spec(output={"uri": "o", "merge": True}), resolved(method), SHAPE, DATA)
    assert found.fits is True


def test_activations_are_computed_again_where_that_makes_it_fit_and_the_spec_leaves_it_open() -> None:
    kinds = [GpuType(name="a10", memory="24Gi")]
    fits = {
        wish: estimates(kinds, spec(training={"gradientCheckpointing": wish}), resolved(), SHAPE, DATA)[0].fits
        for wish in ("Auto", "Enabled", "Disabled")
    }
    assert fits == {"Auto": True, "Enabled": True, "Disabled": False}


def test_one_kind_of_gpu_that_fits_is_enough() -> None:
    kinds = [GpuType(name="small", memory="4Gi"), GpuType(name="large", memory="80Gi")]
    found = estimates(kinds, spec(), resolved(), SHAPE, DATA)
    assert [each.fits for each in found] == [False, True]
    require_fit(found, kinds, spec(), resolved(), SHAPE, DATA)
    require_fit([], [], spec(), resolved(), SHAPE, DATA)


def test_qlora_is_not_the_remedy_for_a_model_with_experts() -> None:
    least, longest = Setup("LoRA", checkpointing=True), Load(2000, 500)
    needed = predict(SHAPE, replace(least, method="QLoRA"), longest).total
    assert "spec.method.type QLoRA" in alternative(SHAPE, least, longest, needed, 0)
    assert alternative(replace(SHAPE, routed=2), least, longest, needed, 0).startswith("No method would fit.")
    full = alternative(replace(SHAPE, routed=2), replace(least, method="Full"), longest, 40 * GIB, 0)
    assert full.startswith("With spec.method.type LoRA, ")


GPUS = {"compute": {"gpusPerNode": 4}}


@pytest.mark.parametrize(
    ("method", "memory", "sharded"),
    [(LORA, "40Gi", None), (LORA, "16Gi", True), (FULL, "200Gi", None), (FULL, "80Gi", True), (QLORA, "16Gi", None)],
)
def test_weights_are_sharded_only_if_the_job_does_not_fit_one_gpu(
    method: MethodType, memory: str, sharded: bool | None
) -> None:
    gpu = GpuType(name="a", memory=memory)
    (found,) = estimates([gpu], spec(**GPUS), resolved(method), SHAPE, DATA)
    assert (found.fits, found.sharded) == (True, sharded)
    (alone,) = estimates([gpu], spec(), resolved(method), SHAPE, DATA)
    assert (alone.fits, alone.sharded) == (not sharded, None)


ROWS = DataSize(np.full(1000, 500), np.full(1000, 100), longest=500, answered=100, prompt=400)


@pytest.mark.parametrize(
    ("method", "memory", "wanted", "tokens"),
    [
        (FULL, "110Gi", None, 16_384),
        (LORA, "18Gi", None, 8192),
        (LORA, "15Gi", None, 4096),
        (LORA, "18Gi", 1024, 1024),
        (LORA, "40Gi", None, None),
    ],
    ids=["the largest", "the largest that fits", "a smaller GPU", "set by the job", "not sharded"],
)
def test_a_training_with_sharded_weights_takes_the_largest_predicted_micro_batch(
    method: MethodType, memory: str, wanted: int | None, tokens: int | None
) -> None:
    training = {"globalBatchSize": 64} | ({"microBatchTokens": wanted} if wanted else {})
    gpu, wish = GpuType(name="a", memory=memory), spec(training=training, **GPUS)
    before = resolved(method, wanted or 2048)
    found, (estimated,) = sized([gpu], wish, before, SHAPE, ROWS)
    assert estimated.sharded is (True if tokens else None)
    assert found.sharded_micro_batch_tokens == tokens
    assert found.micro_batch_tokens <= (wanted or 2048), "that of the evaluation"
    available = int(memory.removesuffix("Gi")) * GIB
    plan = first_plan(wish, before, SHAPE, ROWS, available)
    assert plan
    assert plan.memory.total <= (0.9 if tokens and not wanted else 1) * available


def test_a_job_that_fits_only_without_a_margin_is_not_refused() -> None:
    wish = spec(training={"globalBatchSize": 64}, **GPUS)
    sharded = setups_of(wish, resolved(), SHAPE)[-1]
    available = min(predict(SHAPE, sharded, load).total for load in loads(ROWS, 64, resolved()))
    plan = first_plan(wish, resolved(), SHAPE, ROWS, available)
    assert plan
    assert (plan.setup, plan.memory.total) == (sharded, available)
    assert first_plan(wish, resolved(), SHAPE, ROWS, available - 1) is None


def test_the_micro_batch_fits_every_gpu_type_whose_weights_are_sharded() -> None:
    wish = spec(training={"globalBatchSize": 64}, **GPUS)
    gpus = [GpuType(name=memory, memory=memory) for memory in ("18Gi", "15Gi", "40Gi")]
    assert sized(gpus, wish, resolved(), SHAPE, ROWS)[0].sharded_micro_batch_tokens == 4096


@pytest.mark.parametrize(
    ("method", "parts"),
    [(QLORA, {}), (FULL, {"training": {"optimizer": "PagedAdamW8bit"}})],
)
def test_four_bit_weights_and_8_bit_moments_are_never_sharded(method: MethodType, parts: dict[str, Any]) -> None:
    assert [setup.shards for setup in setups_of(spec(**GPUS, **parts), resolved(method), SHAPE)] == [1, 1]


def test_without_gradient_checkpointing_weights_are_sharded_without_it() -> None:
    wish = spec(training={"gradientCheckpointing": "Disabled"}, **GPUS)
    assert [(setup.shards, setup.checkpointing) for setup in setups_of(wish, resolved(), SHAPE)] == [
        (1, False),
        (4, False),
    ]


def test_merging_after_a_training_with_sharded_weights_needs_the_whole_model_on_one_gpu() -> None:
    merging = spec(output={"uri": "o", "merge": True}, **GPUS)
    (found,) = estimates([GpuType(name="a", memory="16Gi")], merging, resolved(), SHAPE, DATA)
    assert found.fits is False
    assert (found.alternative or "").startswith("spec.output.merge needs the model in bfloat16.")


@pytest.mark.parametrize(
    ("method", "memory", "sharded"), [(LORA, "16Gi", True), (FULL, "200Gi", None), (FULL, "80Gi", True)]
)
def test_the_network_between_nodes_takes_time_and_money(method: MethodType, memory: str, sharded: bool | None) -> None:
    gpu = GpuType(name="h100", memory=memory, price_per_hour="1.00")
    one, two, four = (
        estimates([gpu], spec(compute={"gpusPerNode": 4 // nodes, "nodes": nodes}), resolved(method), SHAPE, DATA)[0]
        for nodes in (1, 2, 4)
    )
    assert one.sharded == two.sharded == four.sharded == sharded
    assert one.seconds
    assert two.seconds
    assert two.cost
    sent = 4 if sharded and method is FULL else 2  # parts of 3/4 of the weights, or 32 GB of gradients in two rounds
    least = 125 * sent * 0.75 * (2 if sharded else 4) * SHAPE.parameters * (1 / 3.125e9 - 1 / 50e9)
    assert two.seconds > one.seconds + 0.5 * least
    assert two.seconds == four.seconds
    assert float(two.cost) == pytest.approx(4 * two.seconds / 3600, abs=0.01)


def test_a_job_that_measures_only_the_loss_writes_no_answers() -> None:
    gpu = GpuType(name="h100", memory="81559Mi")
    asked = [
        estimates([gpu], spec(), resolved().model_copy(update={"metrics": metrics}), SHAPE, DATA)[0].seconds or 0
        for metrics in ([MetricName.LOSS, MetricName.PERPLEXITY], [MetricName.EXACT_MATCH, MetricName.LOSS], None)
    ]
    # 16,384 tokens are 29 answers at a time, so each of five rounds has four batches.
    assert asked[1] - asked[0] == pytest.approx(5 * 4 * 150 * 32 * 1e-3, abs=1)
    assert asked[1] == asked[2]
