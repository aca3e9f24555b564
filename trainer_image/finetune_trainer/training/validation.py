"""Validation during training: measures the validation loss, keeps the best weights, and decides on early stopping."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from time import perf_counter

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from finetune_api.reasons import FailureReason
from finetune_api.spec.training import Publish, Training
from finetune_api.status.preflight import Resolved
from finetune_trainer.checkpoints.store import BestWeights
from finetune_trainer.handover.mixing import draw_rows
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.parameters.tensor_file import write_tensors
from finetune_trainer.model.parameters.trainable import trained_weights
from finetune_trainer.model.row_losses import row_losses
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import attended, disk_work
from finetune_trainer.pod.rank import is_first_of_node
from finetune_trainer.ranks.shards import fill, send

MOST_ROWS = 500
"""Most rows of one measurement. They are enough to distinguish one point of the curve from the next."""


@dataclass(frozen=True)
class ValidationLoss:
    """One point of the validation curve."""

    step: int
    """Optimizer steps done."""
    loss: float
    """Mean cross-entropy of the rows' learned tokens, in nats."""
    seconds: float
    """Duration of the measurement."""


class Validation:
    """Measures the validation loss during one training, and keeps the best weights if the job publishes them."""

    def __init__(
        self, rows: Sequence[Example], training: Training, resolved: Resolved, accelerator: Accelerator, folder: Path
    ) -> None:
        """`folder`: the folder for the kept weights."""
        self.curve: list[ValidationLoss] = []
        self._rows = draw_rows(rows, MOST_ROWS, training.seed)
        self._stopping, self._resolved, self._accelerator = training.early_stopping, resolved, accelerator
        self._kept = KeptWeights(folder / "best.safetensors")

    def due(self, step: int) -> bool:
        """Returns whether to measure the loss after step `step`, counted from 1."""
        every = self._resolved.evaluate_every
        return every is not None and (step % every == 0 or step == self._resolved.total_steps)

    def measure(self, model: PreTrainedModel, step: int) -> ValidationLoss:
        """Adds a point to the curve. Raises TrainerFailure LossDiverged if the loss is not a finite number."""
        started = perf_counter()
        model.eval()
        with torch.no_grad(), self._accelerator.autocast():
            losses, labels = row_losses(model, self._rows, self._resolved.micro_batch_tokens)
        loss = float(losses.sum() / labels.sum())
        if not isfinite(loss):
            finding = f"The loss on the validation rows is not a finite number after step {step:,}."
            raise TrainerFailure(FailureReason.LOSS_DIVERGED, finding, step=step)
        point = ValidationLoss(step, loss, perf_counter() - started)
        self.curve.append(point)
        # The model has the weights of the last step anyway.
        if self._resolved.publish is Publish.BEST and self.best is point and step < self._resolved.total_steps:
            self._kept.keep(model, step)
        return point

    @property
    def kept(self) -> BestWeights | None:
        """The kept weights of the best step, or None if none are kept."""
        return self._kept.weights

    def resume(self, curve: list[ValidationLoss], kept: BestWeights | None) -> None:
        """Goes on from an earlier attempt's curve and its kept weights, a file that this object takes over. `curve` is
        continued in place."""
        self.curve = curve
        if kept is not None:
            self._kept.adopt(kept.path, kept.step)

    @property
    def best(self) -> ValidationLoss | None:
        """The lowest point of the curve; the first one if several are equal."""
        return min(self.curve, key=lambda point: point.loss, default=None)

    @property
    def over(self) -> bool:
        """Whether to stop the training early."""
        if self._stopping is None:
            return False
        waited = without_gain([point.loss for point in self.curve], self._stopping.min_delta)
        return waited >= self._stopping.patience

    def finish(self, model: nn.Module) -> None:
        """Gives the model the weights to publish, after its last step."""
        if self._resolved.publish is Publish.BEST and self.curve and self.best is not self.curve[-1]:
            self._kept.restore(model)


def without_gain(losses: Sequence[float], min_delta: float) -> int:
    """Returns the number of losses since the last improvement. A loss is an improvement if it is more than `min_delta`
    below the best loss before it."""
    best, waited = inf, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best - min_delta else (best, waited + 1)
    return waited


class KeptWeights:
    """A copy of the trained weights in a file: the pod's memory cannot hold the weights of a whole model twice.

    The first rank of each node writes the file, and every rank of the node reads it. Between the two there is always an
    optimizer step or a measurement, in which the ranks wait for each other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.weights: BestWeights | None = None
        """The copy; None before the first one."""

    def adopt(self, path: Path, step: int) -> None:
        """Takes over the copy that an earlier attempt made after step `step`."""
        if is_first_of_node():
            path.replace(self._path)
        self.weights = BestWeights(step, self._path)

    def keep(self, model: nn.Module, step: int) -> None:
        """Saves the trained weights after step `step` and replaces the earlier copy. The number format is the published
        one: fp32 for an adapter, bf16 for a whole model."""
        partial = self._path.with_suffix(".partial")
        if not is_first_of_node():
            send(weight.detach() for weight in trained_weights(model).values())
        else:
            dtype = torch.float32 if isinstance(model, PeftModel) else torch.bfloat16
            weights = trained_weights(model)
            with disk_work(dtype.itemsize * sum(weight.numel() for weight in weights.values())):
                write_tensors(partial, weights, dtype)
        self.adopt(partial, step)

    def restore(self, model: nn.Module) -> None:
        """Copies the kept weights back into the model, and beats at each."""
        with torch.no_grad(), safe_open(self._path, "pt") as kept:
            for name, weight in attended(trained_weights(model).items()):
                fill(weight, kept.get_tensor(name))
