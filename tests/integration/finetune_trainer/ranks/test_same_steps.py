"""The number of processes changes nothing of a training: not the loss, not the gradient, not the weights."""

from functools import cache
from math import isclose
from pathlib import Path

import pytest
import torch

from finetune_trainer.training import loop
from tests.integration.finetune_trainer.ranks.courses import METHODS, Course, course
from tests.integration.finetune_trainer.ranks.processes import on_ranks


@cache
def alone(folder: Path, method: str, bf16: bool = False) -> Course:
    """The training with one process."""
    return on_ranks(1, course, folder, method, bf16)[0]


def distance(one: Course, other: Course) -> float:
    """The norm of the difference of the weights, as a share of their norm. Adam makes noise of single weights large
    whose gradient is close to 0, so single weights are not compared."""
    apart = torch.cat([(weight - other.weights[name]).flatten() for name, weight in one.weights.items()])
    return float(apart.norm() / torch.cat([weight.flatten() for weight in one.weights.values()]).norm())


@pytest.mark.thorough_for("4-*")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_losses_gradient_norms_and_weights_are_those_of_one_process(
    method: str, ranks: int, tiny_model_dir: Path
) -> None:
    whole, parts = alone(tiny_model_dir, method), on_ranks(ranks, course, tiny_model_dir, method)
    assert whole.losses[-1] < whole.losses[0], "a run that learns nothing proves nothing"
    for part in parts:
        assert part.losses == pytest.approx(whole.losses, rel=1e-5)
        assert part.norms == pytest.approx(whole.norms, rel=1e-5)
        assert part.tokens == whole.tokens
        assert distance(part, whole) < 1e-5


@pytest.mark.thorough_for("2")
@pytest.mark.parametrize("ranks", [2, 4])
def test_on_two_nodes_they_are_those_of_one_process(ranks: int, tiny_model_dir: Path) -> None:
    whole = alone(tiny_model_dir, "LoRA")
    for part in on_ranks(ranks, course, tiny_model_dir, "LoRA", nodes=2):
        assert part.losses == pytest.approx(whole.losses, rel=1e-5)
        assert part.norms == pytest.approx(whole.norms, rel=1e-5)
        assert part.tokens == whole.tokens
        assert distance(part, whole) < 1e-5


@pytest.mark.thorough_for("4-*")
@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "Full"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_in_bf16_the_gradient_norms_differ_by_less_than_5_in_1000(
    method: str, ranks: int, tiny_model_dir: Path
) -> None:
    whole = alone(tiny_model_dir, method, bf16=True)
    for part in on_ranks(ranks, course, tiny_model_dir, method, True):
        assert part.norms == pytest.approx(whole.norms, rel=5e-3)
        assert part.losses == pytest.approx(whole.losses, rel=5e-3)


def test_the_weights_of_all_ranks_are_equal_bit_by_bit(tiny_model_dir: Path) -> None:
    first, *others = on_ranks(4, course, tiny_model_dir, "Full")
    for other in others:
        assert all(torch.equal(weight, other.weights[name]) for name, weight in first.weights.items())


def test_a_rank_without_rows_takes_part_in_the_step(tiny_model_dir: Path) -> None:
    one_row_a_step = (tiny_model_dir, "LoRA", False, [24, 7, 40], 1)
    whole = on_ranks(1, course, *one_row_a_step)[0]
    for part in on_ranks(4, course, *one_row_a_step):
        assert part.norms == pytest.approx(whole.norms, rel=1e-5)
        assert distance(part, whole) < 1e-5


def averaged(folder: Path) -> Course:
    """A training whose gradients are averaged over the ranks instead of summed."""
    real = loop.sum_gradients

    def average(parameters: list[torch.nn.Parameter], unused: frozenset[int]) -> None:
        real(parameters, unused)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= 2

    loop.sum_gradients = average  # type: ignore[assignment]
    return course(folder, "LoRA")


def test_the_norms_tell_an_average_from_a_sum_where_the_losses_hardly_do(tiny_model_dir: Path) -> None:
    whole, part = alone(tiny_model_dir, "LoRA"), on_ranks(2, averaged, tiny_model_dir)[0]
    assert not isclose(part.norms[0], whole.norms[0], rel_tol=0.3)
    assert part.losses == pytest.approx(whole.losses, rel=1e-2)
