"""The predicted memory of a pod on its node, and its disk space, compared with sums by hand."""

from dataclasses import replace

import pytest

from finetune_trainer.sizing.host_memory import FILE_BYTES, PROCESS, host_memory, memory_for_checkpoints
from finetune_trainer.sizing.memory import Setup, adapter_parameters
from finetune_trainer.sizing.scratch import checkpoint_bytes, most_space
from tests.unit.finetune_trainer.sizing.test_memory import SHAPE

P = SHAPE.stored_parameters
SHARDED = Setup(method="Full", shards=2)
ADAPTER = 4 * adapter_parameters(SHAPE, Setup())


@pytest.mark.parametrize(
    ("ranks", "converted", "full", "sharded", "merge", "beside"),
    [
        (1, 0, False, False, False, 0),
        (1, P, False, False, False, 0),  # each weight goes to the GPU at once
        (4, 0, False, False, False, 0),
        (1, 0, True, False, False, FILE_BYTES),
        (2, 0, False, False, True, FILE_BYTES),
        (2, 0, False, True, False, 0),  # the file of the model is mapped into memory
        (2, P, False, True, False, 2 * 2 * P),
        (2, P // 2, True, True, False, 2 * P),
        (2, 0, True, True, False, 2 * SHAPE.vocabulary * SHAPE.hidden),
    ],
)
def test_a_pod_needs_its_processes_and_the_larger_of_loading_and_writing(
    ranks: int, converted: int, full: bool, sharded: bool, merge: bool, beside: int
) -> None:
    found = host_memory(SHAPE, ranks, converted, full=full, sharded=sharded, merge=merge)
    assert found == ranks * PROCESS + beside


def test_a_small_model_is_written_as_one_file() -> None:
    small = replace(SHAPE, parameters=10**9)
    assert host_memory(small, 1, 0, full=True, sharded=False) == PROCESS + 2 * 10**9


def test_the_copy_of_a_checkpoint_leaves_a_tenth_of_the_free_memory() -> None:
    assert memory_for_checkpoints(2, 9e9) == 2 * PROCESS + 10e9


@pytest.mark.parametrize(
    ("setup", "best", "merge", "size"),
    [
        (Setup(method="Full"), False, False, 12 * P),
        (SHARDED, True, False, 14 * P),
        (Setup(method="Full", optimizer="PagedAdamW8bit"), True, False, (6 + 8 / 256 + 2) * P),
        (Setup(), True, False, 4 * ADAPTER),
        (Setup(), False, True, 2 * ADAPTER + 2 * P),
        (Setup(method="QLoRA"), True, True, 2 * ADAPTER + 2 * P),
    ],
)
def test_the_most_space_is_that_of_a_checkpoint_or_of_a_merged_model(
    setup: Setup, best: bool, merge: bool, size: float
) -> None:
    assert most_space(SHAPE, setup, best, merge).size == pytest.approx(size)


def test_a_checkpoint_of_an_adapter_has_its_weights_and_two_moments() -> None:
    assert checkpoint_bytes(SHAPE, Setup()) == 3 * ADAPTER
