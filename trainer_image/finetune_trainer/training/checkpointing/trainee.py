"""What a checkpoint is taken of."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from finetune_trainer.checkpoints.store import BestWeights
from finetune_trainer.training.run_state import RunState


@dataclass(frozen=True)
class Trainee:
    """What the steps of a run change."""

    model: nn.Module
    optimizer: Optimizer
    run: RunState
    kept_weights: Callable[[], BestWeights | None]
    """Returns the weights of the best step, if they are kept."""

    @property
    def step(self) -> int:
        """The last step."""
        return len(self.run.steps)
