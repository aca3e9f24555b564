"""A trainer whose work hangs ends itself, with the stacks of its threads. Each test runs the trainer's own process."""

import subprocess
import textwrap
from pathlib import Path

import pytest

from finetune_api.bundle import Bundle, TerminationMessage
from finetune_api.reasons import FailureReason, reason_of_exit_code
from tests.integration.finetune_trainer import hanging
from tests.integration.finetune_trainer.hanging import CODE
from tests.integration.finetune_trainer.trainings import prepare
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight_runs import with_dataset

OF_THE_TRAINING = """
import ctypes
from finetune_trainer.train import recipe, tuning

def hang_in_c(*_, **__):
    time.sleep(2)  # the watchdog looks, and sees that no model is loaded any more
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # waits for ever, also after a signal, and keeps the GIL, unlike time.sleep

"""


def run(bundle: Bundle, folder: Path, patch: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Trains in a process in which `patch` lets something hang. Returns its end and the termination message."""
    prepare(bundle)
    done, log = hanging.run("train", bundle, folder, OF_THE_TRAINING + textwrap.dedent(patch))
    return done, log.read_text() if log.exists() else ""


STEP_4_HANGS = """
from finetune_trainer.training import loop
take = loop.accumulate_gradients
loop.accumulate_gradients = lambda *given, **more: (HANG if given[5] == 3 else take)(*given, **more)
"""


@pytest.mark.thorough_for("load", "validation", "publish")
@pytest.mark.parametrize(
    ("patch", "phase", "step"),
    [
        (STEP_4_HANGS.replace("HANG", "hang"), "training, after step 3 of 6", 3),
        (
            "from finetune_trainer.evaluation import base_measurement; base_measurement.load_model = hang",
            "loading the base model",
            None,
        ),
        (
            "from finetune_trainer.evaluation import scoring; scoring.write_answers = hang",
            "generating answers with the base model",
            None,
        ),
        ("tuning.Validation.measure = hang", "training, after step 2 of 6", 2),
        ("recipe.upload_results = hang", "publishing the results, after step 6 of 6", 6),
    ],
    ids=["step", "load", "generation", "validation", "publish"],
)
def test_work_that_hangs_ends_the_trainer_with_its_phase_and_every_stack(
    make_bundle: MakeBundle, tmp_path: Path, patch: str, phase: str, step: int | None
) -> None:
    bundle = with_dataset(make_bundle(), split={"validation": 0.1})
    done, log = run(bundle, tmp_path, patch)
    assert done.returncode == CODE, done.stderr
    assert reason_of_exit_code(done.returncode) is FailureReason.TRAINING_STALLED
    said = TerminationMessage.model_validate_json(log)
    assert said.reason is FailureReason.TRAINING_STALLED
    assert said.message.startswith("The trainer made no progress for ")
    assert f" s while {phase}" in said.message
    assert said.step == step
    assert "Current thread" in done.stderr, "the watchdog's own stack"
    assert "in hang\n" in done.stderr, "the stack that shows where it hangs"
    assert '"reason": "TrainingStalled"' in done.stdout, "the status"


@pytest.mark.thorough_for("step")
@pytest.mark.parametrize(
    "patch",
    [
        STEP_4_HANGS.replace("HANG", "hang"),
        """
from finetune_trainer.evaluation import generation
generate, calls = generation.EachToken.__call__, iter(range(99))
generation.EachToken.__call__ = lambda *given: hang() if next(calls) == 5 else generate(*given)
""",
    ],
    ids=["step", "token"],
)
def test_a_timeout_of_the_job_ends_steady_work_sooner_than_the_default(
    make_bundle: MakeBundle, tmp_path: Path, patch: str
) -> None:
    bundle = make_bundle(runPolicy={"stallTimeoutSeconds": 2})
    done, log = run(bundle, tmp_path, f"heartbeat.LEAST_SECONDS = 300.0\n{patch}")
    assert done.returncode == CODE, done.stderr
    assert TerminationMessage.model_validate_json(log).message.startswith("The trainer made no progress for 2 s while ")


def test_a_library_that_holds_the_gil_ends_the_trainer_with_the_same_exit_code(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    short = "watchdog.FUSE_SIGNAL = 1  # one second"
    done, log = run(make_bundle(), tmp_path, f"{short}\n{STEP_4_HANGS.replace('HANG', 'hang_in_c')}")
    assert done.returncode == CODE, done.stderr
    assert "in hang_in_c\n" in done.stderr
    assert log == "", "no message can be written without the GIL"


def test_work_that_is_slow_but_shows_progress_goes_on(make_bundle: MakeBundle, tmp_path: Path) -> None:
    patch = """
    from finetune_trainer.training import loop
    take = loop.accumulate_gradients
    def slowly(*given, **more):
        for _ in range(5):
            time.sleep(1)
            heartbeat.beat()
        return take(*given, **more)
    loop.accumulate_gradients = slowly
    """
    bundle = make_bundle(training={"maxSteps": 1})
    done, log = run(bundle, tmp_path, patch)
    assert done.returncode == 0, done.stderr
    assert TerminationMessage.model_validate_json(log).reason == "Succeeded"
