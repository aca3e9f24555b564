"""The size of micro-batches is found before the first step, and does not change a step."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method
from finetune_api.spec.training import GradientCheckpointing, Training
from finetune_api.status.preflight import Resolved
from finetune_trainer.model.parameters.trainable import attach_lora, trainable_parameters, uses_gradient_checkpointing
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.training import memory_probe
from finetune_trainer.training.loop import accumulate_gradients
from finetune_trainer.training.memory_probe import (
    StepLayout,
    after_earlier_job,
    find_plan,
    fits,
    plans,
    smaller,
    synthetic_rows,
    worst_micro_batch,
)
from tests.unit.finetune_trainer import small_runs
from tests.unit.finetune_trainer.model.test_isolation import mamba2
from tests.unit.finetune_trainer.small_runs import examples, fresh_accelerator, tiny_llama

AUTO, ENABLED, DISABLED = GradientCheckpointing
ROWS = examples([24, 7, 40, 12, 33, 18, 9])


def resolved(tokens: int) -> Resolved:
    return small_runs.resolved(learning_rate=1e-3, micro_batch_tokens=tokens)


def test_plans_halve_the_tokens_first_and_then_use_gradient_checkpointing() -> None:
    assert plans(600, 4096, AUTO) == [
        *(StepLayout(tokens, False) for tokens in (4096, 2048, 1024)),
        *(StepLayout(tokens, True) for tokens in (4096, 2048, 1024, 600)),
    ]


def test_plans_keep_the_specs_gradient_checkpointing() -> None:
    assert plans(600, 2000, DISABLED) == [StepLayout(tokens, False) for tokens in (2000, 1000, 600)]
    assert plans(600, 2000, ENABLED) == [StepLayout(tokens, True) for tokens in (2000, 1000, 600)]


@pytest.mark.parametrize(
    ("wanted", "rows", "tokens"), [(None, 8, 143), (None, 2, 73), (50, 8, 50), (16, 8, 40), (None, 5000, 16_384)]
)
def test_the_first_plan_has_a_whole_step_within_the_limits(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, rows: int, tokens: int
) -> None:
    small_gpu(monkeypatch, 20_000, 0)
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    data = examples([40] * 500) if rows == 5000 else ROWS
    monkeypatch.setattr(memory_probe, "fits", lambda *_: True)
    training = Training(global_batch_size=rows, micro_batch_tokens=wanted)
    assert find_plan(model, data, training, resolved(2048), fresh_accelerator()) == StepLayout(tokens, False)


PLAIN, RECOMPUTED = StepLayout(4096, False), StepLayout(4096, True)


@pytest.mark.parametrize(
    ("earlier", "own", "spec", "plan"),
    [
        (StepLayout(16384, False), PLAIN, {}, PLAIN),  # a smaller GPU
        (StepLayout(16384, False), RECOMPUTED, {}, RECOMPUTED),
        (StepLayout(1024, False), PLAIN, {}, StepLayout(1024, False)),  # the earlier job ran out of memory in a step
        (StepLayout(1024, True), PLAIN, {}, StepLayout(1024, True)),
        (StepLayout(1024, True), PLAIN, {"micro_batch_tokens": 8192}, RECOMPUTED),
        (StepLayout(1024, True), PLAIN, {"gradient_checkpointing": DISABLED}, StepLayout(1024, False)),
        (StepLayout(8192, False), RECOMPUTED, {"gradient_checkpointing": ENABLED}, RECOMPUTED),
    ],
)
def test_a_job_that_goes_on_from_another_one_has_a_plan_for_its_own_gpu_and_spec(
    earlier: StepLayout, own: StepLayout, spec: dict[str, Any], plan: StepLayout
) -> None:
    assert after_earlier_job(earlier, own, Training(**spec)) == plan


@given(st.lists(st.tuples(st.integers(2, 40), st.integers(0, 39)), min_size=1, max_size=30), st.integers(40, 200))
def test_no_micro_batch_of_the_data_is_larger_than_the_tried_one(rows: list[tuple[int, int]], tokens: int) -> None:
    lengths = np.array([length for length, _ in rows])
    labels = np.array([min(label, length - 1) for length, label in rows])
    documents, most = worst_micro_batch(lengths, labels, tokens)
    assert tokens - 1 <= sum(documents) <= tokens
    assert max(documents) == lengths.max()
    order = np.argsort(-labels)  # one possible packing: the rows with most labels first
    chosen = order[np.cumsum(lengths[order]) <= tokens]
    assert labels[chosen].sum() <= most
    made = synthetic_rows(documents, most, 320)
    assert [len(row.input_ids) for row in made] == documents
    assert sum(int(row.supervised.sum()) for row in made) == most
    assert not any(row.supervised[0] for row in made)


def test_trying_changes_no_weights_and_gradients() -> None:
    model = attach_lora(tiny_llama(torch.float32), Method.model_validate({"lora": {"dropout": 0.5}}), seed=0)
    before = [parameter.clone() for parameter in model.parameters()]
    shape = worst_micro_batch(np.array([40, 24]), np.array([13, 8]), 64)
    assert fits(model, shape, StepLayout(64, False), 8, fresh_accelerator())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in trainable_parameters(model))


def small_gpu(monkeypatch: pytest.MonkeyPatch, holds: int, holds_checkpointed: int) -> None:
    """Stands in for a GPU. For micro-batches that are too large it raises the error that PyTorch raises."""

    def accumulate(model: Any, rows: Any, tokens: int, accelerator: Any) -> float:
        if tokens > (holds_checkpointed if uses_gradient_checkpointing(model) else holds):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return accumulate_gradients(model, rows, tokens, accelerator)

    monkeypatch.setattr(memory_probe, "accumulate_gradients", accumulate)
    monkeypatch.setattr(memory_probe, "on_cpu", lambda accelerator: False)


@pytest.mark.parametrize(
    ("holds", "checkpointed", "plan"),
    [(143, 0, StepLayout(143, False)), (100, 90, StepLayout(71, True)), (0, 40, StepLayout(40, True))],
)
def test_the_first_plan_that_fits_is_used(
    monkeypatch: pytest.MonkeyPatch, holds: int, checkpointed: int, plan: StepLayout
) -> None:
    small_gpu(monkeypatch, holds, checkpointed)
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    assert find_plan(model, ROWS, Training(), resolved(2048), fresh_accelerator()) == plan
    assert uses_gradient_checkpointing(model) is plan.gradient_checkpointing


class Filling:
    """Stands in for a GPU that has room for one micro-batch of `holds` tokens, but not for a second one after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, holds: int) -> None:
        self.holds = holds
        monkeypatch.setattr(memory_probe, "accumulate_gradients", self.accumulate)
        monkeypatch.setattr(memory_probe, "on_cpu", lambda accelerator: False)

    def accumulate(self, model: Any, rows: Any, tokens: int, accelerator: Any) -> float:
        if sum(len(row.input_ids) for row in rows) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return accumulate_gradients(model, rows, tokens, accelerator)


@pytest.mark.parametrize(
    ("batch", "wanted", "repeat", "tokens"),
    [
        (8, None, False, 143),  # all seven rows in one micro-batch
        (8, 200, False, 143),
        (2, None, False, 73),
        (8, None, True, 71),  # with weights a step may have a row twice, and then needs a second micro-batch
        (8, 142, False, 71),  # the step has one more token than the micro-batch
    ],
)
def test_a_step_of_one_micro_batch_needs_no_room_for_a_second_one(
    monkeypatch: pytest.MonkeyPatch, batch: int, wanted: int | None, repeat: bool, tokens: int
) -> None:
    Filling(monkeypatch, 143)
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    training = Training(global_batch_size=batch, micro_batch_tokens=wanted)
    assert find_plan(model, ROWS, training, resolved(2048), fresh_accelerator(), repeat).micro_batch_tokens == tokens


def test_if_nothing_fits_the_failure_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    small_gpu(monkeypatch, 0, 0)
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    with pytest.raises(TrainerFailure, match="longest row has 40 tokens and does not fit") as caught:
        find_plan(model, ROWS, Training(), resolved(2048), fresh_accelerator())
    assert caught.value.reason is FailureReason.GPU_OUT_OF_MEMORY


def test_any_other_error_of_the_step_is_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    small_gpu(monkeypatch, 0, 0)
    monkeypatch.setattr(memory_probe, "accumulate_gradients", broken)
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    with pytest.raises(RuntimeError, match="mat1"):
        find_plan(model, ROWS, Training(), resolved(2048), fresh_accelerator())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout: float) -> None:
    gradients = []
    for wish in (DISABLED, ENABLED):
        model = attach_lora(
            tiny_llama(torch.float64), Method.model_validate({"lora": {"dropout": dropout}}), seed=0
        ).to(torch.float64)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        accelerator = fresh_accelerator()
        plan = find_plan(model.train(), ROWS, Training(gradient_checkpointing=wish), resolved(64), accelerator)
        assert plan == StepLayout(64, wish is ENABLED), "on a CPU what was planned"
        accumulate_gradients(model, ROWS, plan.micro_batch_tokens, accelerator)
        gradients.append([parameter.grad for parameter in trainable_parameters(model)])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("device", "tokens"), [("cuda", 16_384), ("cpu", 2048)])
def test_sharded_weights_take_the_predicted_micro_batch_on_a_gpu(
    device: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_probe, "is_sharded", lambda _: True)
    monkeypatch.setattr(memory_probe, "on_cpu", lambda _: device == "cpu")
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    predicted = resolved(2048).model_copy(update={"sharded_micro_batch_tokens": 16_384})
    assert find_plan(model, ROWS, Training(), predicted, fresh_accelerator()) == StepLayout(tokens, True)


def test_rows_that_go_alone_are_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[StepLayout] = []
    monkeypatch.setattr(memory_probe, "fits", lambda model, shape, plan, *_: bool(tried.append(plan)) or len(tried) > 1)
    monkeypatch.setattr(memory_probe, "on_cpu", lambda _: False)
    model = mamba2()
    plan = find_plan(model, ROWS, Training(global_batch_size=8), resolved(2048), fresh_accelerator())
    assert tried == [StepLayout(40, False), StepLayout(40, True)]
    assert plan == StepLayout(40, True, packed=False)


def test_on_a_cpu_they_are_planned_so() -> None:
    plan = find_plan(mamba2(), ROWS, Training(), resolved(2048), fresh_accelerator())
    assert plan == StepLayout(40, False, packed=False)


def test_after_running_out_of_memory_a_micro_batch_is_halved_and_then_activations_are_recomputed() -> None:
    plan, seen = StepLayout(1024, False, packed=False), []
    for _ in range(4):
        plan = smaller(plan, 300, AUTO)
        seen.append((plan.micro_batch_tokens, plan.gradient_checkpointing))
    assert seen == [(512, False), (300, False), (300, True), (300, True)]
    assert not plan.packed
    assert smaller(StepLayout(300, False), 300, DISABLED) == StepLayout(300, False)
