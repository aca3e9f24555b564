"""The defaults of settings that the spec leaves open. The field descriptions document the rules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from finetune_api.reasons import FailureReason
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Publish, Training
from finetune_api.status.preflight import Estimate, Resolved
from finetune_trainer.handover.prepared import Example
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.resolve import (
    default_learning_rate,
    evaluate_every,
    lora_or_qlora,
    resolve,
    sequence_limit,
    total_steps,
    warmup_steps,
)
from finetune_trainer.rows.row_format import Message


def example(prompt: int, answer: int) -> Example:
    ids = np.zeros(prompt + answer, dtype=np.int32)
    return Example(ids, ids.astype(np.bool_), prompt, (Message("user", "p"), Message("assistant", "a")), "f:1")


def resolved(parameters: int = 10**9, rows: int = 100, validation: Sequence[Example] = (), **training: Any) -> Resolved:
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "m"},
            "dataset": {"train": [{"uri": "d"}]},
            "output": {"uri": "o"},
            "training": training,
        }
    )
    train = [example(10, length) for length in range(1, rows + 1)]
    return resolve(
        spec,
        parameters,
        128,
        "ChatTemplate",
        (MetricName.LOSS,),
        train=train,
        test=[example(10, 5)],
        validation=validation,
    )


@pytest.mark.parametrize(("parameters", "rate"), [(999_999_999, 1e-3), (10**9, 2e-4)])
def test_small_models_learn_faster(parameters: int, rate: float) -> None:
    assert resolved(parameters).learning_rate == rate
    assert resolved(parameters, learningRate=5e-5).learning_rate == 5e-5


@pytest.mark.parametrize(
    ("steps", "warm_up"), [(1, 0), (9, 0), (20, 2), (100, 10), (200, 10), (333, 10), (334, 11), (10_000, 300)]
)
def test_warm_up_is_3_percent_or_10_steps_and_at_most_a_tenth(steps: int, warm_up: int) -> None:
    assert warmup_steps(steps) == warm_up


def test_each_epoch_ends_with_a_step_of_the_rows_that_are_left() -> None:
    assert total_steps(17, Training(epochs=3, global_batch_size=8)) == 9
    assert total_steps(17, Training(epochs=3, global_batch_size=8, max_steps=5)) == 5
    assert total_steps(17, Training(epochs=1, global_batch_size=8, max_steps=50)) == 3


@pytest.mark.parametrize(
    ("given", "longest", "context", "limit"),
    [
        (None, 100, 512, 100),
        (None, 900, 512, 512),
        (None, 9000, 131072, 4096),
        (None, 9000, None, 4096),
        (64, 100, 512, 64),
        (512, 100, 512, 512),
        (9000, 100, None, 9000),
    ],
)
def test_the_longest_row_is_as_given_or_that_of_the_data_within_the_context_and_4096(
    given: int | None, longest: int, context: int | None, limit: int
) -> None:
    assert sequence_limit(Training(max_sequence_length=given), longest, context) == limit


def test_more_than_the_context_is_refused() -> None:
    with pytest.raises(TrainerFailure, match=r"training\.maxSequenceLength is 513, "):
        sequence_limit(Training(max_sequence_length=513), 100, 512)


def test_the_longest_row_always_fits_into_a_micro_batch() -> None:
    assert resolved().micro_batch_tokens == 2048
    assert resolved(rows=3000).micro_batch_tokens == 3010
    assert resolved(microBatchTokens=500).micro_batch_tokens == 500
    assert resolved(microBatchTokens=16).micro_batch_tokens == 110


@pytest.mark.parametrize(("ratio", "warm_up"), [(0.0, 0), (0.1, 10), (0.25, 25), (0.101, 11), (0.999, 99)])
def test_warm_up_is_the_share_of_the_steps_that_was_asked_for(ratio: float, warm_up: int) -> None:
    assert warmup_steps(100, ratio) == warm_up


def test_a_run_of_one_step_has_no_warm_up() -> None:
    assert warmup_steps(1, 0.9) == 0


@pytest.mark.parametrize("parameters", [10**6, 10**10])
def test_full_tuning_moves_weights_by_little(parameters: int) -> None:
    assert default_learning_rate(MethodType.FULL, parameters) == 1e-5


def test_validation_is_five_times_a_run_and_at_least_once_an_epoch() -> None:
    def every(rows: int, **training: Any) -> int | None:
        return evaluate_every(Training.model_validate(training), total_steps(rows, Training(**training)), rows)

    assert every(800) == 20
    assert every(80, epochs=20) == 10
    assert every(8) == 1
    assert every(800, evaluate_every=7) == 7


def test_the_best_weights_are_published_where_there_is_something_to_tell_them_by() -> None:
    held = [example(10, 5)]
    assert (resolved().publish, resolved().evaluate_every) == (Publish.LAST, None)
    assert resolved(validation=held).publish is Publish.BEST
    assert resolved(validation=held, publish="Last").publish is Publish.LAST


@pytest.mark.parametrize(
    ("field", "training"),
    [
        ("earlyStopping", {"earlyStopping": {}}),
        ("evaluateEvery", {"evaluateEvery": 10}),
        ("publish Best", {"publish": "Best"}),
    ],
)
def test_settings_that_use_validation_rows_need_them(field: str, training: dict[str, Any]) -> None:
    with pytest.raises(
        TrainerFailure, match=f"spec.training.{field} needs validation rows.*spec.dataset.split.validation"
    ) as no:
        resolved(**training)
    assert no.value.reason is FailureReason.SPEC_INVALID
    resolved(validation=[example(10, 5)], **training)


@pytest.mark.parametrize(
    ("fits", "method", "why"),
    [
        ([], MethodType.LORA, "Auto chose LoRA because the profile does not set spec.gpuTypes[].memory."),
        ([None], MethodType.LORA, "Auto chose LoRA because the profile does not set spec.gpuTypes[].memory."),
        ([True], MethodType.LORA, "Auto chose LoRA because LoRA fits gpu-0 and needs about 30.0Gi."),
        ([False, True], MethodType.LORA, "Auto chose LoRA because LoRA fits gpu-1 and needs about 30.0Gi."),
        (
            [False],
            MethodType.QLORA,
            "Auto chose QLoRA because LoRA with bfloat16 weights would need about 30.0Gi, more than gpu-0 has.",
        ),
    ],
)
def test_auto_is_lora_unless_only_4_bit_weights_fit_and_says_why(
    fits: list[bool | None], method: MethodType, why: str
) -> None:
    found = [Estimate(gpu_type=f"gpu-{i}", memory="30.0Gi", fits=fit) for i, fit in enumerate(fits)]
    chosen = lora_or_qlora(resolved(), found)
    assert (chosen.method, chosen.method_reason) == (method, why)


def test_answers_may_be_half_as_long_again_as_nearly_all_that_are_learned() -> None:
    # The 99th percentile of 1..100, interpolated as NumPy does by default, is 99.01.
    assert resolved().max_new_tokens == 149
