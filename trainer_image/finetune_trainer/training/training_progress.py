"""Progress of the training: a line in the log and status.training, at most every ten seconds."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from finetune_api.quantity import gibibytes
from finetune_api.status.job import Training
from finetune_trainer.pod.progress import INTERVAL_SECONDS
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.pod.termination import results_kept, steps_done
from finetune_trainer.training.loop import Step
from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.run_state import RunState
from finetune_trainer.training.validation import ValidationLoss


class TrainingProgress:
    """Reports the first and the last step, and one step every ten seconds in between."""

    def __init__(
        self,
        writer: StatusWriter,
        attempt: int,
        device: str,
        total_steps: int,
        steps_per_epoch: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.total_steps = total_steps
        self._writer, self._attempt, self._device = writer, attempt, device
        self._steps_per_epoch, self._clock = steps_per_epoch, clock
        self._last: Step | None = None
        self._plan: StepLayout | None = None
        self._curve: list[ValidationLoss] = []
        self._tokens, self._seconds, self._told = 0, 0.0, 0.0
        self._seconds_validating, self._memory = 0.0, 0
        self._resumed_from: int | None = None
        self.model_seconds: float | None = None
        """Seconds that the download of the base model took."""
        self.checkpoint_step: int | None = None
        """Step of the last uploaded checkpoint."""
        self._kept_results: int | None = None

    def resumed(self, run: RunState) -> None:
        """Goes on from the steps and measurements of an earlier attempt."""
        self._resumed_from = self.checkpoint_step = run.resumed_from
        for step in run.steps:
            self._count(step)
        self._curve = list(run.curve)
        self._seconds_validating = sum(point.seconds for point in run.curve)

    @property
    def training(self) -> Training:
        """Returns status.training after the steps so far."""
        now, step = datetime.now(UTC), self._last
        about: dict[str, Any] = {"attempt": self._attempt, "device": self._device, "total_steps": self.total_steps}
        about |= {"model_seconds": self.model_seconds}
        about |= {"resumed_from_step": self._resumed_from, "checkpoint_step": self.checkpoint_step}
        about |= {"kept_results": self._kept_results}
        if self._plan:
            about |= asdict(self._plan)
        if self._curve:
            best = min(self._curve, key=lambda point: point.loss)
            about["validation_loss"] = self._curve[-1].loss
            about |= {"best_validation_loss": best.loss, "best_step": best.step}
        if self._device != "cpu" and self._memory:
            about["gpu_memory"] = gibibytes(self._memory)
        if step is None:
            return Training(step=0, observed_time=now, **about)
        return Training(
            step=step.number,
            epoch=round(step.number / self._steps_per_epoch, 3),
            loss=step.loss,
            learning_rate=step.learning_rate,
            tokens_per_second=round(self._tokens / self._seconds, 1),
            estimated_completion_time=now + timedelta(seconds=self._seconds_left(step)),
            observed_time=now,
            **about,
        )

    def planned(self, plan: StepLayout) -> None:
        """Records the plan for the status."""
        self._plan = plan

    def validated(self, point: ValidationLoss) -> None:
        """Records a measurement of the validation loss and prints it."""
        self._curve.append(point)
        self._seconds_validating += point.seconds
        print(f"Training: validation loss {point.loss:.3f} after step {point.step:,}", flush=True)

    def advance(self, step: Step) -> None:
        """Counts a step and reports it when a report is due. Raises Superseded as StatusWriter.progress does."""
        self._count(step)
        ends = step.number in (1, self.total_steps)
        if not ends and self._clock() - self._told < INTERVAL_SECONDS:
            return
        self._told = self._clock()
        print(
            f"Training: step {step.number:,} of {self.total_steps:,}, loss {step.loss:.3f}, "
            f"{self._tokens / self._seconds:,.0f} tokens/s, {duration(self._seconds_left(step))} left",
            flush=True,
        )
        if step.number < self.total_steps:
            # The last step is written together with the condition Trained.
            self.report()

    def stored(self, step: int) -> None:
        """Reports that no later attempt takes the steps up to `step` again. Raises Superseded as StatusWriter.progress
        does."""
        steps_done(step, step)
        if step != self.checkpoint_step:
            self.checkpoint_step = step
            self.report()

    def kept(self, results: int) -> None:
        """Reports that the storage has so many results that a later attempt takes over. Raises Superseded as
        StatusWriter.progress does."""
        results_kept(results)
        self._kept_results = results
        self.report()

    def report(self) -> None:
        """Writes the status now. Raises Superseded as StatusWriter.progress does."""
        self._writer.progress(training=self.training)

    def _count(self, step: Step) -> None:
        self._last = step
        self._memory = max(self._memory, step.memory)
        self._tokens, self._seconds = self._tokens + step.tokens, self._seconds + step.seconds

    def _seconds_left(self, step: Step) -> float:
        return (self._seconds + self._seconds_validating) / step.number * (self.total_steps - step.number)


def duration(seconds: float) -> str:
    """Returns a time span as text, such as "9.5 s", "14 min 00 s" or "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
