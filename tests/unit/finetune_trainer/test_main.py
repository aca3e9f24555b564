"""The command as the cluster runs it: a process, its exit code and its termination message."""

import argparse
import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle, TerminationMessage
from finetune_api.reasons import AGAIN, FAILURES, SUPERSEDED_EXIT_CODE, FailureReason
from finetune_api.spec.gpu_type import GpuType
from finetune_trainer import __main__ as command
from finetune_trainer.pod.failure import Superseded, TrainerFailure
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight_runs import with_dataset


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "termination-log"))
    return tmp_path / "termination-log"


@pytest.fixture(autouse=True)
def keep_signal_handler() -> Any:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def keep_bitsandbytes() -> Any:
    """A training hides the library for the rest of its process. Other tests of this process need it."""
    before = sys.modules.pop("bitsandbytes", None)
    yield
    sys.modules.pop("bitsandbytes", None)
    if before:
        sys.modules["bitsandbytes"] = before


def save(bundle: Bundle, path: Path) -> Path:
    path.write_text(bundle.model_dump_json(by_alias=True, exclude_none=True))
    return path


def said(log: Path) -> TerminationMessage:
    return TerminationMessage.model_validate_json(log.read_text())


@pytest.mark.parametrize("deduplicate", [{}, {"near": "Keep"}])
def test_a_preflight_without_a_sentence_model_succeeds_without_torch(
    make_bundle: MakeBundle, tmp_path: Path, log: Path, deduplicate: dict[str, Any]
) -> None:
    path = save(with_dataset(make_bundle(), deduplicate=deduplicate), tmp_path / "bundle.json")
    script = (
        "import sys; from finetune_trainer.__main__ import main; code = main(['preflight', sys.argv[1]]); "
        "assert not sys.modules.get('torch'), 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert said(log) == TerminationMessage(
        reason="Succeeded", message="48 training rows in 6 optimizer steps, 12 test rows."
    )


def test_a_failure_ends_with_its_exit_code_message_and_remedy(
    make_bundle: MakeBundle, tmp_path: Path, log: Path
) -> None:
    path = save(make_bundle(rows=[{"prompt": "a"}]), tmp_path / "bundle.json")
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "preflight", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == FAILURES[FailureReason.DATASET_INVALID].exit_code
    assert said(log).reason == FailureReason.DATASET_INVALID
    assert "train.jsonl line 1:" in said(log).message
    assert done.stderr.endswith("Then create the job again.\n")
    assert "Traceback" not in done.stderr


def test_a_pod_that_receives_sigterm_never_exits_with_0(make_bundle: MakeBundle, tmp_path: Path, log: Path) -> None:
    fifo = tmp_path / "never-ends.jsonl"
    os.mkfifo(fifo)
    path = save(make_bundle(dataset={"train": [{"uri": str(fifo)}]}), tmp_path / "bundle.json")
    process = subprocess.Popen([sys.executable, "-m", "finetune_trainer", "preflight", str(path)])
    with fifo.open("wb") as writer:  # the process opens it when it reads the rows
        writer.write(b'{"prompt": "a", "completion": "b"}\n')
        writer.flush()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == FAILURES[FailureReason.PREEMPTED].exit_code
    assert said(log).reason == FailureReason.PREEMPTED


def test_sigterm_while_the_libraries_are_loaded_ends_with_the_exit_code_of_preempted(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text(
        "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "train", "bundle.json"], env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == FAILURES[FailureReason.PREEMPTED].exit_code


def test_an_import_that_hangs_ends_as_a_stall(make_bundle: MakeBundle, tmp_path: Path, log: Path) -> None:
    (tmp_path / "torch.py").write_text("import time; time.sleep(600)")
    script = (
        "import sys; import finetune_trainer.__main__ as m; from finetune_trainer.pod.liveness import heartbeat; "
        "m.START_SECONDS = heartbeat.LEAST_SECONDS = 2.0; m.end(m.main(sys.argv[1:]))"
    )
    path = save(make_bundle(), tmp_path / "bundle.json")
    done = subprocess.run(
        [sys.executable, "-c", script, "train", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == FAILURES[FailureReason.TRAINING_STALLED].exit_code
    assert said(log).reason == FailureReason.TRAINING_STALLED
    assert said(log).message.startswith("The trainer made no progress for")
    assert "while importing the libraries." in said(log).message
    assert "torch.py" in done.stderr  # where it hangs


def test_a_pod_that_receives_sigterm_writes_its_message_first_and_does_not_wait_for_the_api_server(
    make_bundle: MakeBundle, tmp_path: Path, log: Path
) -> None:
    fifo = tmp_path / "never-ends.jsonl"
    os.mkfifo(fifo)
    job = {"namespace": "team", "name": "job", "uid": "1"}
    path = save(make_bundle(dataset={"train": [{"uri": str(fifo)}]}, job=job), tmp_path / "bundle.json")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.getsockname()[1])}
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", "preflight", str(path)], env=os.environ | address
        )
        with fifo.open("wb") as writer:
            writer.write(b'{"prompt": "a", "completion": "b"}\n')
            writer.flush()
            process.send_signal(signal.SIGTERM)
            connection, _ = server.accept()  # the pod tries to write its status, and nobody answers
            with connection:
                assert said(log).reason == FailureReason.PREEMPTED
                try:
                    assert process.wait(9) == FAILURES[FailureReason.PREEMPTED].exit_code
                finally:
                    process.kill()


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (TrainerFailure(FailureReason.LOSS_DIVERGED, "NaN.", step=7), 29, "LossDiverged"),
        (Superseded("another attempt writes"), SUPERSEDED_EXIT_CODE, "Superseded"),
        (KeyError("a row"), FAILURES[FailureReason.TRAINER_CRASHED].exit_code, "TrainerCrashed"),
        (SystemExit(0), FAILURES[FailureReason.TRAINER_CRASHED].exit_code, "TrainerCrashed"),
    ],
)
def test_every_outcome_of_a_step_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    make_bundle: MakeBundle,
    tmp_path: Path,
    log: Path,
    error: BaseException,
    code: int,
    reason: str,
) -> None:
    def run(options: argparse.Namespace, bundle: Bundle) -> str:
        raise error

    monkeypatch.setattr(command, "_run", run)
    path = tmp_path / "bundle.json"
    path.write_text(make_bundle().model_dump_json(by_alias=True, exclude_none=True))
    assert command.main(["train", str(path), "--attempt", "2"]) == code
    assert said(log).reason == reason
    assert said(log).step == getattr(error, "step", None)
    assert "a row" not in log.read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "bundle.json does not exist."),
        ("{", "Invalid JSON"),
        ("{}", "spec: Field required"),
        (json.dumps({"spec": {"model": {"uri": "m"}, "output": {"uri": "o"}}}), "spec.dataset: Field required"),
    ],
)
def test_a_bundle_that_is_not_valid_names_the_field(tmp_path: Path, log: Path, content: str | None, words: str) -> None:
    path = tmp_path / "bundle.json"
    if content is not None:
        path.write_text(content)
    assert command.main(["preflight", str(path)]) == FAILURES[FailureReason.SPEC_INVALID].exit_code
    assert words in said(log).message


@pytest.mark.parametrize("step", ["preflight", "train", "cleanup"])
def test_a_bundle_that_the_operator_did_not_write_is_refused_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, make_bundle: MakeBundle, tmp_path: Path, log: Path, step: str
) -> None:
    ran: list[Bundle] = []
    monkeypatch.setattr(command, "_run", lambda options, bundle: ran.append(bundle) or "Done.")
    path = tmp_path / "bundle.json"
    path.write_text(make_bundle().model_dump_json(by_alias=True, exclude_none=True))
    written = hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setenv("FINETUNE_BUNDLE_DIGEST", written)
    assert command.main([step, str(path)]) == 0
    path.write_text(path.read_text() + " ")  # means the same
    assert command.main([step, str(path)]) == FAILURES[FailureReason.SPEC_INVALID].exit_code
    assert said(log).message == (
        "The ConfigMap with the input of the job's pods was replaced before the pod started. The operator did not "
        f"write its content, so the pod did not use it. Do not create or replace this ConfigMap. {AGAIN}"
    )
    monkeypatch.delenv("FINETUNE_BUNDLE_DIGEST")  # an operator of an earlier version
    assert command.main([step, str(path)]) == 0
    assert len(ran) == 2


@pytest.mark.parametrize(("variable", "types"), [(None, ["a", "b"]), ("b", ["b"])])
def test_a_training_learns_its_gpu_type_from_its_environment(
    make_bundle: MakeBundle,
    tmp_path: Path,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    types: Any,
) -> None:
    seen: list[str] = []

    def train(bundle: Bundle, *_: Any) -> str:
        seen.extend(gpu.name for gpu in bundle.gpu_types)
        return "Done."

    monkeypatch.setattr("finetune_trainer.train.recipe.train", train)
    if variable:
        monkeypatch.setenv("FINETUNE_GPU_TYPE", variable)
    bundle = make_bundle().model_copy(update={"gpu_types": [GpuType(name="a"), GpuType(name="b")]})
    assert command.main(["train", str(save(bundle, tmp_path / "bundle.json"))]) == 0
    assert seen == types


@pytest.mark.parametrize(
    ("method", "optimizer", "needed"),
    [
        ("LoRA", "AdamW", False),
        ("Full", "AdamW", False),
        ("LoRA", "PagedAdamW8bit", True),
        ("QLoRA", "AdamW", True),
        ("Auto", "AdamW", True),
    ],
)
def test_a_training_imports_bitsandbytes_only_where_something_needs_it(
    make_bundle: MakeBundle,
    tmp_path: Path,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    optimizer: str,
    needed: bool,
) -> None:
    found: list[bool] = []

    def train(*_: Any) -> str:
        found.append(importlib.util.find_spec("bitsandbytes") is not None)  # as PEFT asks
        return "Done."

    monkeypatch.setattr("finetune_trainer.train.recipe.train", train)
    bundle = make_bundle(method={"type": method}, training={"optimizer": optimizer})
    assert command.main(["train", str(save(bundle, tmp_path / "bundle.json"))]) == 0
    assert found == [needed]


def test_a_fetch_that_fails_ends_well_because_the_trainer_downloads_the_model_itself(
    make_bundle: MakeBundle, tmp_path: Path, log: Path
) -> None:
    path = save(make_bundle(), tmp_path / "bundle.json")  # no preflight has prepared anything
    script = (
        "import sys; from finetune_trainer.__main__ import main; code = main(['fetch', sys.argv[1]]); "
        "assert not sys.modules.get('torch'), 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "the trainer downloads it itself" in said(log).message


def test_without_room_for_the_message_the_exit_code_still_tells_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", "/dev/full")
    assert command.main(["preflight", str(tmp_path / "none.json")]) == FAILURES[FailureReason.SPEC_INVALID].exit_code


SEGMENTS = """
import os
from finetune_trainer.__main__ import ALLOCATOR, grow_segments
grow_segments()
import torch
read = getattr(torch._C, "_accelerator_getAllocatorSettings", None)  # PyTorch 2.11 does not have it
print({name: os.environ[name] for name in ALLOCATOR if name in os.environ}, read() if read else None, sep="; ")
"""


@pytest.mark.parametrize(
    ("given", "name", "settings"),
    [
        ({}, "PYTORCH_ALLOC_CONF", "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}, "PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512"),
        ({"PYTORCH_ALLOC_CONF": ""}, "PYTORCH_ALLOC_CONF", ""),
    ],
    ids=["by default", "set by the platform under the old name", "switched off by the platform"],
)
def test_the_memory_of_a_gpu_grows_in_segments_unless_the_platform_says_otherwise(
    given: dict[str, str], name: str, settings: str
) -> None:
    bare = {key: value for key, value in os.environ.items() if key not in command.ALLOCATOR}
    said = subprocess.run(
        [sys.executable, "-c", SEGMENTS], env=bare | given, capture_output=True, text=True, check=True, timeout=120
    )
    assert said.stdout.rstrip("\n") in {f"{ {name: settings} }; {read}" for read in (settings, None)}
