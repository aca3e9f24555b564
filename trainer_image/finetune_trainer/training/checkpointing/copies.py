"""The copy of a training's state that is uploaded while training goes on."""

from collections.abc import Mapping
from contextlib import suppress

from torch import Tensor

from finetune_trainer.checkpoints.background import Background
from finetune_trainer.checkpoints.buffers import MOST_PINNED, Buffers, bytes_of
from finetune_trainer.checkpoints.free_memory import has_room
from finetune_trainer.checkpoints.training_state import live_state
from finetune_trainer.ranks.group import gather
from finetune_trainer.ranks.shards import trains_shards
from finetune_trainer.training.checkpointing.trainee import Trainee

LOOK_SECONDS = 1.0
"""How often the training looks whether the memory for a copy is allocated, if it waits for that."""


class Copies:
    """The copies of one attempt, each in the memory of the one before."""

    def __init__(self, background: Background) -> None:
        """`background`: allocates the memory beside the training."""
        self._buffers, self._background = Buffers(), background
        self._prepared = self._allocating = False

    def prepare(self, trainee: Trainee, due: bool) -> None:
        """Lets the uploader's thread allocate the memory for a copy after the first step, while training goes on. A
        checkpoint that is `due` waits for it, which needs no time unless it is due at once.

        The memory for a large copy, as of a whole model, is not needed until its first checkpoint, hours later."""
        if not self._prepared:
            self._prepared = True
            tensors = live_state(trainee.model, trainee.optimizer)[0]
            if (size := bytes_of(tensors)) <= MOST_PINNED and has_room(size):
                self._allocating = True
                self._background.start(lambda advance: self._allocate(tensors))
        if due and self._allocating:
            while not self._background.wait(LOOK_SECONDS):
                pass
            self._allocating = False

    def _allocate(self, tensors: Mapping[str, Tensor]) -> None:
        with suppress(Exception):  # the first copy tries again, and tells the error
            self._buffers.allocate(tensors)

    def has_room(self, size: int) -> bool:
        """Returns whether a copy of `size` bytes can be taken."""
        return self._buffers.allocated or has_room(size)

    def copy(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns a copy of the tensors, as `Buffers.copy` does."""
        return self._buffers.copy(tensors)

    def release(self) -> None:
        """Gives the memory back. Nothing may read the copies any more."""
        self._buffers.release()


def size_of(trainee: Trainee) -> int:
    """Returns the size of a copy in bytes."""
    return bytes_of(live_state(trainee.model, trainee.optimizer)[0])


def agreed_to_copy(trainee: Trainee, wanted: bool, stopping: bool = False) -> bool:
    """Returns whether rank 0 copies the state of the training now. `wanted`: whether it wants to.

    If the trained weights are sharded, every rank calls it after the same steps and gets the answer of rank 0, because
    all have to send their shards. After SIGTERM (`stopping`) a rank may be elsewhere. Then nothing is copied."""
    if not trains_shards(trainee.model):
        return wanted
    place = (stopping, trainee.step)
    said = gather((place, wanted))
    return said[0][1] is True and all(isinstance(each, tuple) and each[0] == place for each in said)
