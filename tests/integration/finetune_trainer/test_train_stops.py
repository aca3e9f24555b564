"""SIGTERM after the last step, with a storage that hangs, and while a pod ends: what is kept, which message stays."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, main_thread
from time import monotonic
from typing import Any

import pytest
import torch

from finetune_api.bundle import Bundle
from finetune_api.reasons import FAILURES, FailureReason
from finetune_trainer import __main__ as command
from finetune_trainer.checkpoints.kept import KeptResults
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.termination import _Stop
from finetune_trainer.storage.job_storage import JobStorage
from finetune_trainer.train import tuning
from finetune_trainer.training import run as steps_of_a_run
from finetune_trainer.training.checkpointing.checkpoints import Checkpoints
from finetune_trainer.training.loop import Step, training_steps
from finetune_trainer.training.validation import Validation
from tests.integration.finetune_trainer.trainings import prepare
from tests.unit.finetune_trainer.conftest import MakeBundle

PREEMPTED = FAILURES[FailureReason.PREEMPTED].exit_code
GRACE_SECONDS = 8.0
Run = Callable[[Bundle], tuple[int, dict[str, Any]]]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the trainer in this process. Returns its exit code and its termination message."""
    log = tmp_path / "termination-log"
    monkeypatch.setenv("TERMINATION_LOG", str(log))
    for hides in ("_hide_torch", "_hide_bitsandbytes"):
        monkeypatch.setattr(command, hides, lambda *_: None)  # other tests of this process need them
    monkeypatch.setattr(_Stop, "requested", False)
    monkeypatch.setattr(_Stop, "reported", False)
    before = signal.getsignal(signal.SIGTERM)

    def run(bundle: Bundle, step: str = "train") -> tuple[int, dict[str, Any]]:
        path = tmp_path / "bundle.json"
        path.write_text(bundle.model_dump_json(by_alias=True, exclude_none=True))
        return command.main([step, str(path)]), json.loads(log.read_text())

    yield run
    signal.signal(signal.SIGTERM, before)


def stop() -> None:
    """Sends SIGTERM as the kubelet does: the main thread gets it."""
    signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Checkpoints, "close"),
        (Validation, "finish"),
        (tuning, "as_published"),
        (tuning, "summary"),
        (tuning, "stage_weights"),
        (KeptResults, "_write"),
    ],
)
def test_sigterm_between_the_last_step_and_the_kept_weights_loses_no_step_of_an_adapter(
    make_bundle: MakeBundle, trainer: Run, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    bundle = make_bundle(training={"checkpoint": {"every": 100}})
    prepare(bundle)
    real = getattr(owner, name)

    def stopped(*arguments: Any, **options: Any) -> Any:
        if name != "_write" or "trained" in arguments:
            stop()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, stopped)
    code, message = trainer(bundle)
    assert (code, message["reason"]) == (PREEMPTED, "Preempted")
    assert (message["step"], message["checkpointStep"]) == (6, 6)
    kept = Path(bundle.spec.output.uri) / ".work"
    assert list(kept.glob("**/kept/trained-*/manifest.json")), "the next attempt takes no step again"


@pytest.mark.thorough_for("keeping the weights")
@pytest.mark.parametrize("place", ["keeping the weights", "writing the manifest"])
def test_a_storage_that_hangs_after_sigterm_leaves_time_for_the_message(
    make_bundle: MakeBundle, trainer: Run, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    bundle = make_bundle()
    prepare(bundle)
    monkeypatch.setenv("GRACE_SECONDS", str(GRACE_SECONDS))
    stopped, over = list[float](), Event()
    keeps = place == "keeping the weights"
    name = "send" if keeps else "write_bytes"
    real = getattr(JobStorage, name)

    def hanging(self: JobStorage, *arguments: Any, **options: Any) -> Any:
        uri = str(arguments[1] if keeps else arguments[0])
        if "/kept/trained-" in uri if keeps else uri == f"{bundle.spec.output.uri}/manifest.json":
            stopped.append(monotonic())
            stop()
            over.wait(60)
            raise TrainerFailure(FailureReason.STORAGE_UNAVAILABLE, "The storage never answered.")
        return real(self, *arguments, **options)

    monkeypatch.setattr(JobStorage, name, hanging)
    code, message = trainer(bundle)
    over.set()
    assert monotonic() - stopped[0] < GRACE_SECONDS
    assert (code, message["reason"], message["step"]) == (PREEMPTED, "Preempted", 6)


@pytest.fixture
def stopped_while_it_deletes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """SIGTERM arrives when a pod begins to delete its scratch folder. Returns the deleted folders."""
    deleted, real = list[Path](), shutil.rmtree

    def delete(path: Any, *arguments: Any, **options: Any) -> None:
        is_own = Path(path).name.startswith(("train-", "preflight-"))
        if is_own and signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # not while the test prepares the rows
            deleted.append(Path(path))
            stop()
        real(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", delete)
    return deleted


def test_another_sigterm_while_the_scratch_folder_is_deleted_does_not_replace_the_message(
    make_bundle: MakeBundle, trainer: Run, monkeypatch: pytest.MonkeyPatch, stopped_while_it_deletes: list[Path]
) -> None:
    bundle = make_bundle()
    prepare(bundle)

    def steps(*arguments: Any, **options: Any) -> Iterator[Step]:
        for done in training_steps(*arguments, **options):
            if done.number == 3:
                stop()
            yield done

    monkeypatch.setattr(steps_of_a_run, "training_steps", steps)
    code, message = trainer(bundle)
    assert code == PREEMPTED
    expected = "The pod received SIGTERM. The pod stopped after step 3 of 6. Its checkpoint is stored."
    assert message["message"] == expected
    assert [folder.exists() for folder in stopped_while_it_deletes] == [False]


@pytest.mark.parametrize("step", ["preflight", "train"])
def test_sigterm_while_the_scratch_folder_is_deleted_does_not_replace_a_failure(
    make_bundle: MakeBundle, trainer: Callable[..., Any], stopped_while_it_deletes: list[Path], step: str
) -> None:
    bundle = make_bundle()  # no rows were prepared
    if step == "preflight":
        Path(bundle.spec.dataset.train[0].uri).write_text("no row\n")
    code, message = trainer(bundle, step)
    assert code not in (0, PREEMPTED)
    assert message["reason"] != "Preempted"
    assert [folder.exists() for folder in stopped_while_it_deletes] == [False]


def test_a_broken_gpu_is_told_before_the_trainer_waits_for_an_upload(
    trainer: Run, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, told = make_bundle(), list[str]()
    prepare(bundle)

    def breaks(*_: object, **__: object) -> Iterator[Step]:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

    def finish(_: Checkpoints) -> None:
        told.append((tmp_path / "termination-log").read_text())

    monkeypatch.setattr(steps_of_a_run, "training_steps", breaks)
    monkeypatch.setattr(Checkpoints, "finish", finish)
    code, message = trainer(bundle)
    assert (code, message["reason"]) == (FAILURES[FailureReason.GPU_FAULT].exit_code, FailureReason.GPU_FAULT)
    assert [json.loads(text)["reason"] for text in told] == [FailureReason.GPU_FAULT]
