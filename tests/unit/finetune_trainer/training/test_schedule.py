"""The learning rate of each step."""

import pytest

from finetune_api.spec.training import Scheduler
from finetune_trainer.training.schedule import learning_rate


def test_warm_up_rises_in_equal_steps_and_never_starts_at_zero() -> None:
    assert [learning_rate(step, 1.0, 4, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_last_step_runs_at_a_tenth_of_the_peak() -> None:
    assert learning_rate(99, 2e-4, 10, 100) == pytest.approx(2e-5)


def test_half_way_down_it_is_half_way_between_peak_and_floor() -> None:
    assert learning_rate(50, 1.0, 0, 101) == pytest.approx(0.55)


def test_it_only_falls_after_the_warm_up() -> None:
    rates = [learning_rate(step, 1.0, 5, 60) for step in range(5, 60)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_one_or_two_steps_learns_at_the_peak_first(steps: int) -> None:
    assert learning_rate(0, 1e-3, 0, steps) == pytest.approx(1e-3)


def test_linear_falls_in_equal_steps_and_spends_none_at_zero() -> None:
    rates = [learning_rate(step, 1.0, 2, 6, Scheduler.LINEAR) for step in range(6)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])


def test_linear_without_warm_up_is_that_of_transformers() -> None:
    import torch
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=10)
    for step in range(10):
        assert learning_rate(step, 1.0, 0, 10, Scheduler.LINEAR) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_constant_stays_at_the_peak() -> None:
    assert [learning_rate(step, 1.0, 1, 4, Scheduler.CONSTANT) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
