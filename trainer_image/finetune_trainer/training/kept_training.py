"""The tuned weights and the records of a finished training. A later attempt takes them over instead of training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import TIMEOUT_MAX

from pydantic import TypeAdapter, ValidationError

from finetune_trainer.checkpoints.folder import Content
from finetune_trainer.checkpoints.kept import TRAINED, Kept, KeptResults
from finetune_trainer.pod.termination import steps_done
from finetune_trainer.ranks.group import found_on_each_node
from finetune_trainer.training.run_state import RunState
from finetune_trainer.training.training_progress import TrainingProgress, duration
from finetune_trainer.training.validation import Validation

RECORDS = "training.json"


@dataclass(frozen=True)
class KeptTraining:
    """A finished training of an earlier attempt, or of the job of spec.resumeFrom."""

    run: RunState
    weights: Path
    """The folder with the tuned weights, as they are published: an adapter or a whole model."""
    attempt: int
    job: str = ""
    """Name of the earlier job; "" if it is this one."""

    def __str__(self) -> str:
        """A sentence that says what is reused."""
        steps, seconds = len(self.run.steps), sum(step.seconds for step in self.run.steps)
        of_job = f" of job {self.job}" if self.job else ""
        return (
            f"The tuned weights are those of attempt {self.attempt}{of_job}: {steps:,} step{'s' * (steps != 1)} in "
            f"{duration(seconds)}."
        )

    def tell(self, progress: TrainingProgress, validation: Validation) -> None:
        """Gives the status and the validation the records of the training."""
        progress.resumed(self.run)
        progress.planned(self.run.plan)
        validation.resume(self.run.curve, None)
        steps_done(len(self.run.steps), len(self.run.steps))


def keep_training(kept: KeptResults, run: RunState, weights: Path, is_adapter: bool, then: Callable[[], None]) -> None:
    """Keeps the training and the files of its weights in the folder `weights`. `then`: called once they are written.

    `run`: the state with which a later attempt begins. An adapter is kept by a thread: inside `stop_deferred`, a
    storage that hangs must not hold the main thread when the grace period ends."""
    files = {f"weights/{path.relative_to(weights)}": path for path in weights.rglob("*") if path.is_file()}
    records = TypeAdapter(RunState).dump_json(run)
    content: dict[str, Content] = {RECORDS: records, **files}

    def written() -> None:
        steps_done(len(run.steps), len(run.steps))
        then()

    if is_adapter:
        kept.keep_last(TRAINED, content, TIMEOUT_MAX, again=True, then=written)
    else:
        kept.keep(TRAINED, content, then=written)


def kept_training(kept: KeptResults, earlier: KeptResults | None = None, job: str = "") -> KeptTraining | None:
    """Returns the training that an earlier attempt finished, or the job of spec.resumeFrom, or None. Its run begins
    where that attempt ended. `earlier`, `job`: the results of that job, and its name."""

    def find() -> tuple[Kept, str] | None:
        for results, name in ((kept, ""), (earlier, job)):
            if results is not None and (found := results.find(TRAINED, _other_records)) is not None:
                return found, name
        return None

    if (looked := found_on_each_node(find, lambda each: f"{each[0]} {each[1]}")) is None:
        return None
    found, name = looked
    run = _records_in(found.folder)
    run.resumed_from = len(run.steps)
    return KeptTraining(run, found.folder / "weights", found.attempt, name)


def _records_in(folder: Path) -> RunState:
    """Returns the records of the training. Raises ValidationError if this version of the trainer cannot read them."""
    return TypeAdapter(RunState).validate_json((folder / RECORDS).read_bytes())


def _other_records(folder: Path) -> str | None:
    """Returns why the training in this folder cannot be taken over, or None."""
    try:
        _records_in(folder)
    except ValidationError:
        return f"{folder.name} is not used: its {RECORDS} is from another version of the trainer."
    return None
