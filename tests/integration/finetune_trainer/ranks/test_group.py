"""What ranks tell each other, and how all of them learn that one cannot go on."""

from collections.abc import Callable
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from torch import nn

from finetune_api.reasons import FailureReason
from finetune_trainer.evaluation.scoring import Evaluator
from finetune_trainer.model.parameters.loading import greedy_generation, load_model, load_tokenizer
from finetune_trainer.pod.failure import StopRequested, TrainerFailure, failure_of
from finetune_trainer.pod.liveness.heartbeat import beats
from finetune_trainer.pod.rank import place
from finetune_trainer.ranks import gradients
from finetune_trainer.ranks.group import (
    agreed,
    found_on_each_node,
    gather,
    on_each_node,
    on_first,
    slowest_node,
    sum_over_ranks,
    together,
)
from finetune_trainer.statistics.measurements import Measured
from finetune_trainer.training import memory_probe
from finetune_trainer.training.memory_probe import StepLayout
from tests.integration.finetune_trainer.ranks.processes import on_ranks
from tests.unit.finetune_trainer.small_runs import examples, fresh_accelerator


def exchanged() -> tuple[list[int], list[bytes], str]:
    """Values of every rank: small ones, and some that do not fit into one message."""
    rank = place().rank
    return gather(rank), gather(bytes([rank]) * (1 + 5000 * rank)), on_first(lambda: f"from rank {rank}")


def test_every_rank_gets_the_values_of_all_in_order() -> None:
    values = [bytes([rank]) * (1 + 5000 * rank) for rank in range(3)]
    assert on_ranks(3, exchanged) == [([0, 1, 2], values, "from rank 0")] * 3


def by_node() -> tuple[str, str | None]:
    """What the first rank of each node finds for the ranks of its node."""
    here = place()
    on_node = on_each_node(lambda: f"of rank {here.rank}")
    return on_node, found_on_each_node(lambda: f"of node {here.node}", lambda found: "the same")


def test_the_first_rank_of_each_node_works_for_the_ranks_of_its_node() -> None:
    first, second = ("of rank 0", "of node 0"), ("of rank 2", "of node 1")
    assert on_ranks(4, by_node, nodes=2) == [first, first, second, second]
    assert on_ranks(2, by_node) == [first, first]


def waited() -> float:
    """The seconds of a work for which node 0 needs 1 and node 1 needs 2.5, as each rank learns them."""
    return slowest_node(lambda: 1.0 + 1.5 * place().node)


def test_every_rank_has_waited_for_the_slowest_node() -> None:
    assert on_ranks(4, waited, nodes=2) == [2.5] * 4
    assert on_ranks(1, waited) == [1.0]


def waited_for_a_lost_node() -> str:
    """What node 0 raises if node 1 is lost while it works."""
    if place().node == 1:
        return ""
    with pytest.raises(TrainerFailure) as caught:
        slowest_node(lambda: 1.0)
    return caught.value.reason


def test_a_node_that_is_lost_while_the_others_wait_ends_the_wait() -> None:
    assert on_ranks(2, waited_for_a_lost_node, nodes=2) == [FailureReason.PEER_LOST, ""]


def found_by_node_1_alone() -> str:
    """What each rank raises if the nodes do not find the same in the storage."""
    with pytest.raises(TrainerFailure) as caught:
        found_on_each_node(lambda: "step-8" if place().node == 1 else None, str)
    return f"{caught.value.reason}: {caught.value.message}"


def test_nodes_that_find_different_checkpoints_do_not_go_on() -> None:
    said = "StorageUnavailable: The nodes of the training have read different files from the storage: nothing, step-8."
    assert on_ranks(2, found_by_node_1_alone, nodes=2) == [said] * 2


def ended_by_rank_1(error: type[BaseException]) -> list[str]:
    """What each rank raises if rank 1 raises this error while all work together."""

    def work() -> int:
        if place().rank == 1:
            raise error("of rank 1")
        return 7

    said = []
    for call in (lambda: together(work), lambda: [agreed(work)]):
        try:
            call()
        except BaseException as raised:
            said.append(f"{type(raised).__name__}: {failure_of(raised).finding}")
    return said


def test_a_gpu_without_memory_and_a_signal_end_the_work_on_every_rank() -> None:
    short = "AgreedOutOfMemoryError: Rank 1 of 2: of rank 1"
    assert on_ranks(2, ended_by_rank_1, torch.OutOfMemoryError) == [[short] * 2] * 2
    stopped = [f"StopRequested: {failure_of(StopRequested()).finding}"] * 2
    assert on_ranks(2, ended_by_rank_1, StopRequested) == [stopped] * 2


def after_rank_1_has_left() -> str:
    """What the others find if rank 1 ends without a word."""
    gather(0)
    if place().rank == 1:
        return ""
    with pytest.raises(TrainerFailure) as caught:
        gather(0)
    assert caught.value.reason is FailureReason.PEER_LOST
    return caught.value.finding


def test_a_rank_that_is_gone_is_told_as_a_lost_connection() -> None:
    first, _, last = on_ranks(3, after_rank_1_has_left)
    assert first.startswith("Rank 0 of 3: The connection to another process of the training broke: ")
    assert last.startswith("Rank 2 of 3: The connection to another process of the training broke: ")


def summed(bucket: int) -> list[list[float] | None]:
    """The gradients of some parameters after their sum. Rank 1 has none for the second one, no rank for the last."""
    gradients.BUCKET = bucket
    parameters = [nn.Parameter(torch.zeros(size)) for size in (3, 2, 5, 4)]
    for index, parameter in enumerate(parameters[:3]):
        if (index, place().rank) != (1, 1):
            parameter.grad = torch.arange(parameter.numel(), dtype=torch.float32) + 10 * place().rank
    unused = frozenset.intersection(*gather(gradients.without_gradient(parameters)))
    gradients.sum_gradients(parameters, unused)
    return [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters]


@pytest.mark.parametrize("bucket", [1, 5, 100])
def test_gradients_are_summed_and_an_unused_parameter_stays_without_one(bucket: int) -> None:
    expected = [[10.0, 12.0, 14.0], [0.0, 1.0], [10.0, 12.0, 14.0, 16.0, 18.0], None]
    assert on_ranks(2, summed, bucket) == [expected] * 2


def beats_while_rank_1_is_late() -> tuple[int, int]:
    """How often a rank beats while it waits for a value of rank 1, and for its part of a sum."""
    found = []
    for wait in (lambda: gather(0), lambda: sum_over_ranks(torch.zeros(1))):
        gather(0)
        before = beats()
        if place().rank == 1:
            sleep(0.5)
        wait()
        found.append(beats() - before)
    return found[0], found[1]


def test_a_wait_for_a_rank_that_works_shows_progress_and_a_wait_in_a_sum_does_not() -> None:
    of_a_value, of_a_sum = on_ranks(2, beats_while_rank_1_is_late)[0]
    assert of_a_value > 20
    assert of_a_sum == 1


def measured(folder: Path) -> Measured:
    """The measurement of a model by all ranks."""
    model = load_model(folder, "LoRA", torch.device("cpu"))  # type: ignore[arg-type]
    generation = greedy_generation(model, [], 6)
    evaluator = Evaluator(load_tokenizer(folder), 256, generation, fresh_accelerator("bf16"))
    return evaluator.measure("the model", model, examples([24, 7, 40, 12, 33]))


def test_an_evaluation_by_several_ranks_is_that_of_one_in_the_order_of_the_rows(tiny_model_dir: Path) -> None:
    whole = on_ranks(1, measured, tiny_model_dir)[0]
    for part in on_ranks(3, measured, tiny_model_dir):
        assert part.answers == whole.answers
        assert part.labels.tolist() == whole.labels.tolist()
        assert np.allclose(part.losses, whole.losses, rtol=1e-3)


def probed(fits: Callable[..., bool], folder: Path) -> StepLayout:
    """The plan of the ranks if a micro-batch fits into the memory of a GPU as `fits` says."""
    from finetune_api.spec.training import Training
    from tests.unit.finetune_trainer.small_runs import resolved

    memory_probe.fits, memory_probe.on_cpu = fits, lambda accelerator: False
    model = load_model(folder, "LoRA", torch.device("cpu"))  # type: ignore[arg-type]
    training = Training(global_batch_size=64, micro_batch_tokens=4096)
    return memory_probe.find_plan(model, examples([100] * 64), training, resolved(), fresh_accelerator())


def less_on_rank_1(model: object, shape: object, plan: StepLayout, *_: object) -> bool:
    """The GPU of rank 1 has half the memory of the others."""
    return plan.micro_batch_tokens <= (2048 if place().rank == 1 else 4096)


def test_all_ranks_use_the_micro_batch_that_fits_every_gpu(tiny_model_dir: Path) -> None:
    plans = on_ranks(2, probed, less_on_rank_1, tiny_model_dir)
    assert [plan.micro_batch_tokens for plan in plans] == [2048, 2048]
