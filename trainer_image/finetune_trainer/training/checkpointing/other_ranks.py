"""The checkpoints as a rank sees them that writes none: rank 0 writes those of all ranks."""

from finetune_trainer.checkpoints.training_state import live_state
from finetune_trainer.ranks.shards import send, trains_shards
from finetune_trainer.training.checkpointing.copies import agreed_to_copy
from finetune_trainer.training.checkpointing.trainee import Trainee


class NoCheckpoints:
    """Has the methods of Checkpoints, and writes nothing. Sends rank 0 the shards of the weights, if they are
    sharded."""

    uploaded: int | None = None
    """Always None: this rank uploads nothing."""

    def begin(self, trainee: Trainee) -> None:
        """Does nothing."""

    def after_step(self, trainee: Trainee) -> None:
        """Sends the shards of this rank if rank 0 takes a checkpoint."""
        if trains_shards(trainee.model) and agreed_to_copy(trainee, False):
            send(live_state(trainee.model, trainee.optimizer)[0].values())

    def after_sigterm(self, trainee: Trainee) -> int | None:
        """Sends the shards of this rank if rank 0 takes a checkpoint. Returns None."""
        if trains_shards(trainee.model) and agreed_to_copy(trainee, False, stopping=True):
            send(live_state(trainee.model, trainee.optimizer)[0].values())
        return None

    def finish(self) -> None:
        """Does nothing."""

    def close(self, failed: bool = False) -> None:
        """Does nothing."""
