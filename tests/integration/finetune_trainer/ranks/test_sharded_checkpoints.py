"""Checkpoints of sharded weights: rank 0 writes whole ones, and no rank waits for one that is elsewhere."""

from pathlib import Path
from time import monotonic
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from finetune_api.spec.training import Training
from finetune_trainer.checkpoints.pace import Pace
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.model.parameters.sharding import _shard
from finetune_trainer.pod.failure import failure_of
from finetune_trainer.pod.rank import is_first, place
from finetune_trainer.storage.job_storage import open_storage
from finetune_trainer.training.checkpointing import checkpoints as module
from finetune_trainer.training.checkpointing import copies
from finetune_trainer.training.checkpointing.checkpoints import Checkpoints
from finetune_trainer.training.checkpointing.copies import agreed_to_copy
from finetune_trainer.training.checkpointing.other_ranks import NoCheckpoints
from finetune_trainer.training.checkpointing.trainee import Trainee
from finetune_trainer.training.loop import Step
from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.optimizer import make_optimizer
from finetune_trainer.training.run_state import RunState
from tests.integration.finetune_trainer.ranks.processes import on_ranks
from tests.unit.finetune_trainer.storage.test_job_storage import bundle

CPU = torch.device("cpu")


def trainee(steps: int = 0) -> Trainee:
    """A sharded layer whose weights are 0 to 14, after so many steps."""
    layer = nn.Linear(3, 5, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(15.0).view(5, 3))
    _shard(layer, CPU, None, set())
    run = RunState(StepLayout(1, False))
    run.steps.extend(Step(number, 1.0, 0.1, 0.1, 1, 0.1) for number in range(1, steps + 1))
    return Trainee(layer, make_optimizer(layer, Training()), run, lambda: None)


def checkpoints(folder: Path) -> Checkpoints | NoCheckpoints:
    """The checkpoints of this rank, one after each step."""
    store = CheckpointStore(open_storage(bundle(str(folder))), str(folder / "checkpoints"), "p", {}, keep=9)
    store.begin()
    return Checkpoints(store, Pace(100, 1), attempt=1, started=0.0) if is_first() else NoCheckpoints()


def taken(folder: Path, room: bool) -> int | None:
    """The step of the last checkpoint after one step and after SIGTERM."""
    copies.has_room = lambda size: room
    now, own = trainee(steps=1), checkpoints(folder)
    own.begin(trainee())
    own.after_step(now)
    own.finish()
    uploaded = own.uploaded
    now.run.steps.append(Step(2, 1.0, 0.1, 0.1, 1, 0.1))
    own.after_sigterm(now)
    assert own.uploaded in (uploaded, 2)
    return own.uploaded


def test_rank_0_writes_whole_weights_after_a_step_and_after_sigterm(tmp_path: Path) -> None:
    assert on_ranks(2, taken, tmp_path, True) == [2, None]
    found = {path.parent.name[5:13]: load_file(path) for path in tmp_path.glob("checkpoints/step-*/state.safetensors")}
    assert sorted(map(int, found)) == [1, 2]
    for state in found.values():
        assert torch.equal(state["model/weight"], torch.arange(15.0).view(5, 3))


def test_without_memory_for_a_copy_no_rank_waits_and_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert on_ranks(2, taken, tmp_path, False) == [None, None]
    assert not list(tmp_path.glob("checkpoints/step-*"))


def without_gpu_memory(folder: Path) -> str:
    """How this rank ends if rank 0 alone has no memory of its GPU left for the first tensor of a checkpoint."""

    def copy(tensors: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    copies.has_room = lambda size: True
    now, own = trainee(steps=1), checkpoints(folder)
    own.begin(trainee())
    if isinstance(own, Checkpoints):
        own._copies.copy = copy  # type: ignore[method-assign]
    try:
        own.after_step(now)
    except Exception as error:
        return failure_of(error).reason
    return "took the next step"


def test_a_rank_0_that_cannot_gather_a_checkpoint_ends_and_with_it_the_others(tmp_path: Path) -> None:
    """They wait for it in the middle of the checkpoint, so a next step would never end, or would mix up the weights."""
    assert on_ranks(2, without_gpu_memory, tmp_path) == ["GPUOutOfMemory", "PeerLost"]


def elsewhere() -> tuple[bool, float]:
    """Whether a rank copies after SIGTERM if the other one has taken another number of steps, and the seconds."""
    began = monotonic()
    return agreed_to_copy(trainee(steps=3 + place().rank), is_first(), stopping=True), monotonic() - began


def test_nothing_is_copied_after_sigterm_if_the_ranks_are_not_after_the_same_step() -> None:
    for is_copied, seconds in on_ranks(2, elsewhere):
        assert not is_copied
        assert seconds < 5


def test_the_message_without_memory_names_the_size_and_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(copies, "has_room", lambda size: False)
    monkeypatch.setattr(module, "trains_shards", lambda model: True)
    layer = nn.Linear(1024, 32 * 1024, bias=False)
    whole = Trainee(layer, make_optimizer(layer, Training()), RunState(StepLayout(1, False)), lambda: None)
    own = checkpoints(tmp_path)
    assert isinstance(own, Checkpoints)
    assert not own._has_room(whole)
    said = capsys.readouterr().out
    assert said.startswith("The checkpoint of step 0 was not written. Training goes on, ")
    assert said.endswith("The pod has no memory for a copy of 0.1Gi. Raise spec.compute.memory.\n")
