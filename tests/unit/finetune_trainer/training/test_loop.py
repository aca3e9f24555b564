"""Optimizer steps are reproducible, and a diverged run ends."""

from collections.abc import Sequence
from copy import deepcopy
from math import inf, log, nan
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method
from finetune_api.spec.training import Training
from finetune_trainer.handover.mixing import Mixture
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.batches import rows_of_step
from finetune_trainer.model.parameters.trainable import attach_lora, trainable_parameters
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.training.loop import PATIENCE, Divergence, Step, accumulate_gradients, training_steps
from tests.unit.finetune_trainer.small_runs import (
    VOCABULARY,
    example,
    examples,
    fresh_accelerator,
    resolved,
    tiny_llama,
)

ROWS = examples([24, 7, 40, 12, 33, 18, 9])


def train(
    steps: int = 4,
    micro_batch_tokens: int = 2048,
    rate: float = 1e-2,
    dropout: float = 0.0,
    seed: int = 0,
    noise: int = 0,
    rows: Sequence[Example] = ROWS,
    mixture: Mixture | None = None,
) -> tuple[list[Step], list[torch.Tensor]]:
    """Trains a tiny model; returns its steps and the adapter's weights. `noise`: random numbers that something else
    draws after each step."""
    method = Method.model_validate({"lora": {"dropout": dropout}})
    model = attach_lora(tiny_llama(torch.float32), method, seed)
    settings = resolved(total_steps=steps, micro_batch_tokens=micro_batch_tokens, learning_rate=rate)
    training = Training(global_batch_size=3, seed=seed)
    done = []
    for step in training_steps(model, rows, training, settings, fresh_accelerator(), mixture):
        done.append(step)
        torch.rand(noise)
    return done, [parameter.detach() for parameter in trainable_parameters(model)]


class Taken(list[Example]):
    """Rows that record which of them were read."""

    def __init__(self, rows: Sequence[Example]) -> None:
        super().__init__(rows)
        self.order: list[int] = []

    def __getitem__(self, row: Any) -> Any:
        self.order.append(row)
        return super().__getitem__(row)


def test_every_step_draws_rows_by_the_weights_of_the_sources() -> None:
    rows = Taken(examples([12] * 9))
    train(steps=3, rows=rows, mixture=Mixture((6, 3), (1, 2)))
    steps = [rows.order[start : start + 3] for start in range(0, 9, 3)]
    assert [sum(row >= 6 for row in step) for step in steps] == [2, 2, 2]


def test_a_tiny_model_memorises_the_rows() -> None:
    steps, _ = train(steps=60)
    assert steps[-1].loss < steps[0].loss / 2


def test_a_step_reports_its_figures() -> None:
    steps, _ = train(steps=3)
    assert [step.number for step in steps] == [1, 2, 3]
    assert sum(step.tokens for step in steps) == sum(len(row.input_ids) for row in ROWS), "one epoch"
    assert steps[0].learning_rate == 1e-2
    assert all(step.gradient_norm > 0 and step.seconds > 0 and step.memory > 1e6 for step in steps)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_seed_gives_the_same_weights(dropout: float) -> None:
    _, first = train(dropout=dropout)
    _, second = train(dropout=dropout, noise=3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_step_of_a_resumed_run_equals_the_step_of_the_whole_run() -> None:
    """A resumed run takes such a step."""
    model = attach_lora(tiny_llama(torch.float32), Method.model_validate({"lora": {"dropout": 0.5}}), seed=0)
    training, settings = Training(global_batch_size=3, seed=5), resolved(total_steps=3)
    steps = training_steps(model, ROWS, training, settings, fresh_accelerator())
    next(steps), next(steps)
    alone = deepcopy(model)
    third = next(steps)
    losses = []
    for step in (2, 3):
        rows = [ROWS[row] for row in rows_of_step(Mixture((len(ROWS),)), 3, 5, 2)]
        losses.append(accumulate_gradients(alone.train(), rows, 41, fresh_accelerator(), 5, step))
    assert losses[0] == pytest.approx(third.loss, rel=1e-5)
    assert losses[1] != pytest.approx(third.loss, rel=1e-3), "another step would have dropped other inputs"


def test_another_seed_gives_other_weights() -> None:
    _, first = train(seed=0)
    _, second = train(seed=1)
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_smaller_micro_batches_give_the_same_weights() -> None:
    _, whole = train()
    _, split = train(micro_batch_tokens=41)
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.training.loop.learning_rate", lambda *_: nan)
    with pytest.raises(TrainerFailure) as caught:
        train()
    failure = caught.value
    assert failure.reason is FailureReason.LOSS_DIVERGED
    assert failure.step == 2, "the first step's update broke the weights"
    assert "step 2 is not a finite number" in failure.message
    assert "rows.jsonl:" in failure.message


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(TrainerFailure, match="gradient of step 3 is not a finite number"):
        Divergence(VOCABULARY).check(3, 1.0, inf, [example(4, 1)])


def test_a_loss_worse_than_guessing_for_long_ends_the_run() -> None:
    divergence, row = Divergence(VOCABULARY), [example(4, 1, place="tickets.jsonl:17")]
    losses = [2.0, 2.0, 2.0, *[log(VOCABULARY) + 1] * PATIENCE]
    for step, loss in enumerate(losses[:-1], start=1):
        divergence.check(step, loss, 1.0, row)
    with pytest.raises(TrainerFailure, match=r"worse than random guessing .* tickets\.jsonl:17") as caught:
        divergence.check(len(losses), losses[-1], 1.0, row)
    assert caught.value.step == len(losses)


@given(st.lists(st.floats(0, 1.9 * log(VOCABULARY)), min_size=1, max_size=50))
def test_a_run_that_stays_near_random_guessing_is_not_ended(losses: list[float]) -> None:
    divergence = Divergence(VOCABULARY)
    for step, loss in enumerate([log(VOCABULARY)] * 3 + losses, start=1):
        divergence.check(step, loss, 1.0, [])


def test_one_good_step_in_between_keeps_the_run_going() -> None:
    divergence = Divergence(VOCABULARY)
    bad = [log(VOCABULARY) * 3] * (PATIENCE - 1)
    for step, loss in enumerate([1.0, 1.0, 1.0, *bad, 1.0, *bad], start=1):
        divergence.check(step, loss, 1.0, [])
