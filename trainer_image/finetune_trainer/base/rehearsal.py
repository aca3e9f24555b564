"""What preflight asks of the rehearsal of a training, and what it is told (`finetune_trainer.model.rehearsal`)."""

from pydantic import BaseModel

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method
from finetune_api.spec.training import GradientCheckpointing
from finetune_trainer.pod.failure import TrainerFailure


class Request(BaseModel):
    """The model and the settings of the training."""

    folder: str
    """Has the settings of the model, without its weights."""
    headers: dict[str, tuple[int, ...]]
    """Shape of every tensor by its name in the files of the weights."""
    method: Method
    adapter: str | None = None
    """Folder of the adapter to continue from."""
    gradient_checkpointing: GradientCheckpointing


class Finding(BaseModel):
    """A TrainerFailure."""

    reason: FailureReason
    finding: str
    remedy: str | None

    def failure(self) -> TrainerFailure:
        """Returns the failure."""
        return TrainerFailure(self.reason, self.finding, self.remedy)


class Answer(BaseModel):
    """What the start of the training finds."""

    failure: Finding | None = None
    layered: bool = True
    """Whether the layers of the model are known. Otherwise its weights cannot be sharded."""

    @staticmethod
    def of(failure: TrainerFailure) -> Finding:
        """Returns the failure as a part of an answer."""
        return Finding(reason=failure.reason, finding=failure.finding, remedy=failure.remedy)
