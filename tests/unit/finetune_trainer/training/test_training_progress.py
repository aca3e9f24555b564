"""Progress of the training, in the log and in the status."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.training.loop import Step
from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.run_state import RunState
from finetune_trainer.training.training_progress import TrainingProgress, duration
from finetune_trainer.training.validation import ValidationLoss


class Writes(StatusWriter):
    """Records the step and the kept results of each write."""

    def __init__(self) -> None:
        super().__init__(None, "attempt-1")
        self.steps: list[int] = []
        self.results: list[int | None] = []

    def progress(self, **parts: Any) -> None:
        self.steps.append(parts["training"].step)
        self.results.append(parts["training"].kept_results)


def test_it_tells_of_the_first_step_and_then_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    writes, now = Writes(), [0.0]
    progress = TrainingProgress(writes, 1, "cpu", total_steps=100, steps_per_epoch=50, clock=lambda: now[0])
    for number in range(1, 101):
        now[0] += 1.0
        progress.advance(Step(number, 1.0, 1e-3, 0.5, tokens=300, seconds=1.0))
    assert writes.steps == [1, *range(11, 100, 10)], "the last is written together with Trained=True"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Training: step 1 of 100, loss 1.000, 300 tokens/s, 1 min 39 s left"
    assert lines[-1] == "Training: step 100 of 100, loss 1.000, 300 tokens/s, 0.0 s left"
    assert len(lines) == 11


def test_the_status_says_how_far_how_fast_and_until_when() -> None:
    progress = TrainingProgress(Writes(), 2, "NVIDIA H200", total_steps=4, steps_per_epoch=2)
    assert progress.training.step == 0
    assert progress.training.loss is None
    progress.advance(Step(1, 2.5, 1e-3, 0.5, tokens=100, seconds=2.0))
    progress.advance(Step(2, 1.5, 5e-4, 0.5, tokens=300, seconds=2.0))
    status = progress.training
    assert (status.attempt, status.device, status.step, status.total_steps) == (2, "NVIDIA H200", 2, 4)
    assert (status.epoch, status.loss, status.learning_rate, status.tokens_per_second) == (1.0, 1.5, 5e-4, 100.0)
    assert status.estimated_completion_time
    assert (status.estimated_completion_time - status.observed_time).total_seconds() == pytest.approx(4.0)


def test_the_status_says_how_steps_lie_in_memory_and_how_validation_goes(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(Writes(), 1, "cpu", total_steps=4, steps_per_epoch=2)
    progress.planned(StepLayout(1024, True))
    assert progress.training.gpu_memory is None
    progress.advance(Step(1, 2.5, 1e-3, 0.5, tokens=100, seconds=2.0))
    progress.validated(ValidationLoss(1, 1.25, seconds=1.0))
    progress.advance(Step(2, 1.5, 5e-4, 0.5, tokens=300, seconds=2.0))
    progress.validated(ValidationLoss(2, 1.5, seconds=1.0))
    status = progress.training
    assert (status.micro_batch_tokens, status.gradient_checkpointing) == (1024, True)
    assert (status.validation_loss, status.best_validation_loss, status.best_step) == (1.5, 1.25, 1)
    assert status.tokens_per_second == 100.0, "validating is not training"
    assert status.estimated_completion_time
    left = (status.estimated_completion_time - status.observed_time).total_seconds()
    assert left == pytest.approx(6.0), "but takes its time"
    assert "Training: validation loss 1.250 after step 1" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "shown"), [("NVIDIA H200", "3.0Gi"), ("cpu", None)])
def test_the_status_says_how_much_of_a_gpu_is_used_at_most(device: str, shown: str | None) -> None:
    progress = TrainingProgress(Writes(), 1, device, total_steps=4, steps_per_epoch=2)
    progress.advance(Step(1, 2.5, 1e-3, 0.5, 100, 2.0, memory=3 * 2**30))
    progress.advance(Step(2, 1.5, 1e-3, 0.5, 100, 2.0, memory=2 * 2**30))
    assert progress.training.gpu_memory == shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0 s"), (9.9, "9.9 s"), (59.4, "59 s"), (100, "1 min 40 s"), (7300, "2 h 01 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_each_kept_result_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(termination._Done, "kept_results", None)
    written = Writes()
    progress = TrainingProgress(written, 1, "cpu", total_steps=4, steps_per_epoch=2)
    assert progress.training.kept_results is None
    progress.kept(2)
    assert written.results == [2]
    termination.write_failure(TrainerFailure(FailureReason.PREEMPTED, "The pod received SIGTERM."))
    assert TerminationMessage.model_validate_json((tmp_path / "log").read_text()).kept_results == 2
    progress.advance(Step(1, 2.5, 1e-3, 0.5, 100, 2.0))
    assert progress.training.kept_results == 2, "the next report has it too"


def test_a_resumed_training_counts_steps_tokens_and_time_of_earlier_attempts() -> None:
    done = [Step(number, 2.0, 1e-3, 0.5, tokens=100, seconds=2.0) for number in (1, 2)]
    run = RunState(StepLayout(64, False), steps=done, curve=[ValidationLoss(2, 1.5, seconds=1.0)], resumed_from=2)
    progress = TrainingProgress(Writes(), 2, "cpu", total_steps=4, steps_per_epoch=2)
    assert progress.training.resumed_from_step is None
    progress.resumed(run)
    status = progress.training
    assert (status.resumed_from_step, status.checkpoint_step, status.step, status.loss) == (2, 2, 2, 2.0)
    assert (status.validation_loss, status.best_step) == (1.5, 2)
    progress.checkpoint_step = 3
    progress.advance(Step(3, 1.0, 1e-3, 0.5, tokens=400, seconds=2.0))
    assert progress.training.tokens_per_second == 100.0
    assert progress.training.checkpoint_step == 3
