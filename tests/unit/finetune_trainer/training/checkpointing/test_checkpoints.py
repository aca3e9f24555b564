"""When checkpoints are written beside a training, what the training waits for, and what happens after SIGTERM."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from threading import Event
from time import perf_counter

import pytest
import torch
from torch import nn

from finetune_api.spec.training import Training
from finetune_trainer.checkpoints.pace import Pace
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import Superseded
from finetune_trainer.ranks.launcher import LAST_SECONDS
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from finetune_trainer.training.checkpointing import checkpoints as module
from finetune_trainer.training.checkpointing import copies, telling
from finetune_trainer.training.checkpointing.checkpoints import Checkpoints
from finetune_trainer.training.checkpointing.trainee import Trainee
from finetune_trainer.training.loop import Step
from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.optimizer import make_optimizer
from finetune_trainer.training.run_state import RunState
from tests.unit.finetune_trainer.storage.test_job_storage import bundle

Send = Callable[..., None]


class Course:
    """A tiny training, and the checkpoints of it in a folder."""

    def __init__(
        self, folder: Path, every: int = 1, renew: Callable[[Callable[[int], None]], None] = lambda advance: None
    ) -> None:
        self.folder = folder
        model = nn.Linear(3, 3)
        store = CheckpointStore(open_storage(bundle(str(folder))), str(folder / "checkpoints"), "p", {}, keep=9)
        store.begin()
        self.trainee = Trainee(model, make_optimizer(model, Training()), RunState(StepLayout(1, False)), lambda: None)
        self.checkpoints = Checkpoints(store, Pace(100, every), attempt=1, started=0.0, renew=renew)
        self.checkpoints.begin(self.trainee)

    def step(self) -> None:
        """Takes one step, which sets every weight to its number."""
        number = len(self.trainee.run.steps) + 1
        with torch.no_grad():
            self.trainee.model.get_parameter("weight").fill_(number)
        self.trainee.run.steps.append(Step(number, 1.0, 0.1, 0.1, 1, 0.1))

    @property
    def stored(self) -> dict[int, float]:
        """The weight in each complete checkpoint, by step."""
        from safetensors.torch import load_file

        return {
            int(path.parent.name[5:13]): float(load_file(path.parent / "state.safetensors")["model/weight"][0, 0])
            for path in (self.folder / "checkpoints").glob("step-*/manifest.json")
        }


@pytest.fixture
def course(tmp_path: Path) -> Course:
    return Course(tmp_path)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Uploads wait until it is set."""
    gate, send = Event(), JobStorage.send

    def held(self: JobStorage, open: object, uri: str, advance: Callable[[int], None]) -> None:
        while not gate.wait(0.005):
            advance(0)
        send(self, open, uri, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(JobStorage, "send", held)
    return gate


@pytest.fixture
def sigterm(handled: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sends SIGTERM with a grace period of so many seconds."""

    def send(grace: float) -> None:
        monkeypatch.setenv("GRACE_SECONDS", str(grace))
        monkeypatch.setattr(termination._Stop, "deferred", True)
        os.kill(os.getpid(), signal.SIGTERM)

    return send


def test_a_checkpoint_has_the_weights_of_its_step_while_training_goes_on(course: Course, gate: Event) -> None:
    course.step()
    course.checkpoints.after_step(course.trainee)
    course.step()
    course.checkpoints.after_step(course.trainee)  # the upload of step 1 is under way
    course.step()
    gate.set()
    course.checkpoints.finish()
    assert course.stored == {1: 1.0}
    assert course.checkpoints.uploaded == 1


@pytest.fixture
def allocation(monkeypatch: pytest.MonkeyPatch) -> Event:
    """The allocation of the memory for a copy waits until it is set."""
    gate, allocate = Event(), copies.Buffers.allocate

    def held(self: copies.Buffers, tensors: Mapping[str, torch.Tensor]) -> None:
        assert gate.wait(60)
        allocate(self, tensors)

    monkeypatch.setattr(copies.Buffers, "allocate", held)
    return gate


def test_the_memory_for_a_copy_is_allocated_beside_the_training_before_a_checkpoint_is_due(
    tmp_path: Path, allocation: Event
) -> None:
    course = Course(tmp_path, every=3)
    for _ in range(2):
        course.step()
        course.checkpoints.after_step(course.trainee)  # does not wait
    assert not course.checkpoints._copies._buffers.allocated
    allocation.set()
    assert course.checkpoints._background.wait(10)
    assert course.checkpoints._copies._buffers.allocated
    course.step()
    course.checkpoints.after_step(course.trainee)
    course.checkpoints.finish()
    assert course.stored == {3: 3.0}


def test_the_memory_for_a_large_copy_is_allocated_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MOST_PINNED", 0)
    course = Course(tmp_path, every=2)
    course.step()
    course.checkpoints.after_step(course.trainee)
    assert course.checkpoints._background.wait(10)
    assert not course.checkpoints._copies._buffers.allocated
    course.step()
    course.checkpoints.after_step(course.trainee)
    course.checkpoints.finish()
    assert course.stored == {2: 2.0}


def test_a_training_whose_checkpoint_finds_those_of_a_later_pod_ends(course: Course, tmp_path: Path) -> None:
    storage = open_storage(bundle(str(tmp_path)))
    later = CheckpointStore(storage, str(tmp_path / "checkpoints"), "later", {}, attempt=2)
    later.begin()
    later.write(1, lambda: BytesIO(b"state"), b"", None, lambda size: None)
    course.step()
    course.checkpoints.after_step(course.trainee)
    with pytest.raises(Superseded, match="a later pod of the job, in attempt 2"):
        course.checkpoints.finish()
    course.step()
    with pytest.raises(Superseded):
        course.checkpoints.after_step(course.trainee)
    assert course.checkpoints.uploaded == 1, "its last checkpoint is whole"


def test_what_else_a_later_attempt_needs_is_renewed_after_each_upload(tmp_path: Path) -> None:
    renewed: list[int | None] = []
    course = Course(tmp_path, renew=lambda advance: renewed.append(course.checkpoints.uploaded))
    for _ in range(2):
        course.step()
        course.checkpoints.after_step(course.trainee)
        course.checkpoints.finish()
        assert course.checkpoints._uploads._renewing.wait(10)
    assert renewed == [1, 2]


@pytest.fixture
def long_renewal(tmp_path: Path) -> Iterator[Course]:
    """A training beside whose first checkpoint a renewal begins that does not end by itself."""

    def renew(advance: Callable[[int], None]) -> None:
        while not over.wait(0.005):
            advance(0)

    over, course = Event(), Course(tmp_path, renew=renew)
    course.step()
    course.checkpoints.after_step(course.trainee)
    course.checkpoints.finish()
    assert course.checkpoints._uploads._renewing.busy
    yield course
    over.set()


def test_checkpoints_are_taken_while_something_is_renewed(long_renewal: Course) -> None:
    for _ in range(2):
        long_renewal.step()
        long_renewal.checkpoints.after_step(long_renewal.trainee)
        long_renewal.checkpoints.finish()
    assert long_renewal.stored.keys() == {1, 2, 3}
    assert long_renewal.checkpoints._uploads._renewing.busy


def test_after_sigterm_the_renewal_ends_and_the_last_step_is_uploaded_at_once(
    long_renewal: Course, sigterm: Callable[[float], None]
) -> None:
    long_renewal.step()
    sigterm(60)
    assert long_renewal.checkpoints.after_sigterm(long_renewal.trainee) == 2
    assert termination.seconds_left() > 40, "the grace period was not used up"
    assert long_renewal.checkpoints._uploads._renewing.wait(10)


def test_the_renewal_ends_with_the_training(long_renewal: Course) -> None:
    long_renewal.checkpoints.close()
    assert long_renewal.checkpoints._uploads._renewing.wait(10)


def test_without_memory_for_a_copy_training_waits_for_the_upload_and_the_log_says_so(
    course: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(copies, "has_room", lambda size: False)
    monkeypatch.setattr(telling, "LONG_WAIT_SECONDS", 0)
    course.step()
    course.checkpoints.after_step(course.trainee)
    course.step()
    course.checkpoints.close()
    assert course.stored == {1: 1.0}
    said = capsys.readouterr().out
    assert "s for the checkpoint of step 1, because there is no memory for a copy of 0.0Gi." in said


@pytest.mark.parametrize("place", ["send", "copy"])
def test_a_failed_checkpoint_is_told_and_the_next_one_is_written(
    course: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "/scratch")

    with monkeypatch.context() as patched:
        patched.setattr(*((JobStorage, "send", fail) if place == "send" else (copies.Buffers, "copy", fail)))
        course.step()
        course.checkpoints.after_step(course.trainee)
        assert course.checkpoints._background.wait(10)
    course.step()
    course.checkpoints.after_step(course.trainee)
    course.checkpoints.finish()
    assert course.stored == {2: 2.0}
    said = capsys.readouterr().out
    assert "The checkpoint of step 1 was not written. Training goes on" in said
    assert "No disk space is left for /scratch." in said


def test_after_sigterm_the_last_step_is_uploaded_after_the_one_under_way(
    course: Course, gate: Event, sigterm: Callable[[float], None]
) -> None:
    course.step()
    course.checkpoints.after_step(course.trainee)
    course.step()
    sigterm(60)
    gate.set()
    assert course.checkpoints.after_sigterm(course.trainee) == 2
    assert course.stored == {1: 1.0, 2: 2.0}


def test_after_sigterm_an_upload_that_fails_is_tried_again(
    course: Course, monkeypatch: pytest.MonkeyPatch, sigterm: Callable[[float], None]
) -> None:
    tries, send = [], JobStorage.send

    def shaky(self: JobStorage, *arguments: object) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("the storage does not answer")
        send(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(JobStorage, "send", shaky)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    course.step()
    sigterm(60)
    assert course.checkpoints.after_sigterm(course.trainee) == 1
    assert course.stored == {1: 1.0}


def test_an_upload_that_does_not_end_in_the_grace_period_is_given_up(
    course: Course, gate: Event, sigterm: Callable[[float], None]
) -> None:
    course.step()
    sigterm(0.5)
    assert course.checkpoints.after_sigterm(course.trainee) is None
    assert termination.seconds_left() == 0
    course.checkpoints.close()
    assert not course.checkpoints._background.busy
    assert course.stored == {}


def test_an_upload_that_hangs_keeps_no_time_from_the_report_of_the_end(
    course: Course, monkeypatch: pytest.MonkeyPatch, sigterm: Callable[[float], None]
) -> None:
    hung = Event()
    monkeypatch.setattr(JobStorage, "send", lambda *_: hung.wait(60))
    course.step()
    sigterm(0.5)
    assert course.checkpoints.after_sigterm(course.trainee) is None
    monkeypatch.setattr(termination._Stop, "reported", True)  # the training leaves its message before it closes them
    started = perf_counter()
    course.checkpoints.close()
    assert perf_counter() - started < 5, "15 s are kept for the report"
    assert course.checkpoints._background.busy
    hung.set()


def test_after_a_failure_the_upload_that_hangs_and_the_report_fit_into_the_time_of_the_launcher(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = Event()
    monkeypatch.setattr(JobStorage, "send", lambda *_: hung.wait(60))
    course.step()
    course.checkpoints.after_step(course.trainee)
    started = perf_counter()
    course.checkpoints.finish()
    course.checkpoints.close(failed=True)
    assert perf_counter() - started < LAST_SECONDS - 3, "the rest is for the report"
    hung.set()


def test_a_large_upload_that_takes_longer_than_the_grace_period_is_not_begun(
    course: Course, sigterm: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    course.step()
    course.checkpoints.after_step(course.trainee)
    assert course.checkpoints._background.wait(10)
    course.checkpoints._uploads.shortest = 100.0
    monkeypatch.setattr(module, "STORAGE_SPEED", 0.1)  # of 48 bytes and more
    course.step()
    sigterm(60)
    assert course.checkpoints.after_sigterm(course.trainee) == 1
    assert termination.seconds_left() > 40


def test_after_one_slow_upload_the_last_step_is_uploaded_all_the_same(
    course: Course, sigterm: Callable[[float], None]
) -> None:
    course.step()
    course.checkpoints.after_step(course.trainee)
    assert course.checkpoints._background.wait(10)
    course.checkpoints._uploads.shortest = 100.0
    course.step()
    sigterm(60)
    assert course.checkpoints.after_sigterm(course.trainee) == 2


def test_the_fastest_upload_says_how_long_the_last_one_may_take(course: Course) -> None:
    def upload() -> float:
        course.step()
        course.checkpoints.after_step(course.trainee)
        assert course.checkpoints._background.wait(10)
        return course.checkpoints._uploads.shortest

    assert upload() > 0
    course.checkpoints._uploads.shortest = 100.0
    assert upload() < 100
    course.checkpoints._uploads.shortest = 1e-9
    assert upload() == 1e-9


def test_the_end_tells_what_checkpoints_cost(course: Course, capsys: pytest.CaptureFixture[str]) -> None:
    course.step()
    course.checkpoints.after_step(course.trainee)
    course.checkpoints.finish()
    course.checkpoints.close()
    assert "Checkpoints: 1 uploaded. Training waited 0.0" in capsys.readouterr().out


def test_the_end_of_the_training_does_not_wait_for_an_upload_after_sigterm(
    course: Course, gate: Event, sigterm: Callable[[float], None]
) -> None:
    course.step()
    course.checkpoints.after_step(course.trainee)
    sigterm(60)
    course.checkpoints.finish()
    assert course.checkpoints._background.busy
    gate.set()
    course.step()
    assert course.checkpoints.after_sigterm(course.trainee) == 2
