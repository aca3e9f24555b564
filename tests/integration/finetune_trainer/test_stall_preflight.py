"""A preflight whose work hangs ends itself, as a training does. Each test runs the preflight's own process."""

import os
import subprocess
from pathlib import Path

import pytest

from finetune_api.bundle import Bundle, TerminationMessage
from finetune_api.reasons import FailureReason
from tests.integration.finetune_trainer import hanging
from tests.integration.finetune_trainer.hanging import CODE
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight_runs import with_dataset


def run(bundle: Bundle, folder: Path, patch: str = "") -> tuple[subprocess.CompletedProcess[str], TerminationMessage]:
    """Runs the preflight in which `patch` lets something hang. Returns its end and the termination message."""
    done, log = hanging.run("preflight", bundle, folder, patch)
    return done, TerminationMessage.model_validate_json(log.read_text())


def require_stalled(done: subprocess.CompletedProcess[str], said: TerminationMessage, phase: str, frame: str) -> None:
    """The process has ended with TrainingStalled in this phase, and the log shows the function that hangs."""
    assert (done.returncode, said.reason) == (CODE, FailureReason.TRAINING_STALLED), done.stderr
    assert said.message.endswith(f" s while {phase}.")
    assert f" in {frame}\n" in done.stderr, "the stack that shows where it hangs"
    assert '"type": "Validated", "status": "False", "reason": "TrainingStalled"' in done.stdout, "the status"


@pytest.mark.thorough_for("tokenizing", "near-duplicates", "split", "leaks")
@pytest.mark.parametrize(
    ("patch", "phase"),
    [
        ("from finetune_trainer.base import base_model; base_model._tokenizer = hang", "inspecting the base model"),
        ("from finetune_trainer.preflight.data import gather; gather.tokenize = hang", "reading the rows"),
        (
            "from finetune_trainer.copies.deduplicate import NearCopies; NearCopies.find = hang",
            "searching for near-duplicates",
        ),
        ("from finetune_trainer.preflight.data import split; split.hold_out = hang", "splitting the rows"),
        (
            "from finetune_trainer.preflight.data import leaked_rows; leaked_rows.leaks = hang",
            "searching for leaked test rows",
        ),
        (
            "from finetune_trainer.storage.job_storage import JobStorage; JobStorage.upload_file = hang",
            "uploading the prepared rows",
        ),
    ],
    ids=["tokenizer", "tokenizing", "near-duplicates", "split", "leaks", "upload"],
)
def test_work_that_hangs_ends_the_preflight_with_its_phase_and_every_stack(
    make_bundle: MakeBundle, tmp_path: Path, patch: str, phase: str
) -> None:
    done, said = run(make_bundle(), tmp_path, patch)
    require_stalled(done, said, phase, "hang")


@pytest.mark.thorough
def test_a_sentence_model_that_hangs_ends_the_preflight(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    patch = """
    heartbeat.LEAST_SECONDS = 20.0  # to load torch
    from finetune_trainer.copies.embeddings import SentenceModel
    embed, calls = SentenceModel.embed, iter(range(99))
    SentenceModel.embed = lambda *given: embed(*given) if next(calls) == 0 else hang()
    """
    bundle = make_bundle(runPolicy={"stallTimeoutSeconds": 2})
    bundle = with_dataset(bundle, deduplicate={"embeddingModel": {"uri": str(tiny_model_dir)}})
    done, said = run(bundle, tmp_path, patch)
    require_stalled(done, said, "searching for near-duplicates", "hang")


def test_a_source_that_hangs_ends_the_preflight_after_the_time_that_the_job_allows(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Nobody writes to the named pipe, so that the file cannot even be opened."""
    os.mkfifo(tmp_path / "rows.jsonl")
    bundle = make_bundle(
        dataset={"train": [{"uri": str(tmp_path / "rows.jsonl")}]}, runPolicy={"stallTimeoutSeconds": 2}
    )
    done, said = run(bundle, tmp_path, "heartbeat.LEAST_SECONDS = 300.0")
    require_stalled(done, said, "reading the rows", "open")


def test_a_source_that_is_slow_goes_on(make_bundle: MakeBundle, tmp_path: Path) -> None:
    patch = """
    from finetune_trainer.sources import json_rows
    read = json_rows.lines
    def slowly(*given):
        for number, line in read(*given):
            time.sleep(0.1)
            yield number, line
    json_rows.lines = slowly
    """
    done, said = run(make_bundle(runPolicy={"stallTimeoutSeconds": 4}), tmp_path, patch)
    assert (done.returncode, said.reason) == (0, "Succeeded"), done.stderr
