"""Processes are started, looked after and ended together. They are small programs here, and no trainers."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.rank import Place, by_rank, place
from finetune_trainer.ranks.environment import SURVIVES_GPU_ERRORS, environment

LAUNCH = """
import os, sys
from finetune_trainer.ranks import launcher
from finetune_trainer.ranks import vigil
launcher.LAST_SECONDS, launcher.FINDING_SECONDS = 2.0, float(os.environ.get("FINDING", "2"))
launcher.LOOK_SECONDS, vigil.MARGIN_SECONDS, vigil.SUSPICIOUS_SECONDS = 0.1, 1.0, 0.5
sys.exit(launcher.launch(2, [sys.executable, "-c", sys.argv[1]]))
"""
PROGRAM = """
import os, signal, sys, time
from finetune_api.bundle import TerminationMessage
from finetune_trainer.pod.rank import place
from finetune_trainer.pod.termination import write_termination_message
from finetune_trainer.ranks.peers import handle_failed_peer, told

def end(reason, code, agreed=None):
    write_termination_message(TerminationMessage(reason=reason, message=f"rank {here.rank}", agreed=agreed))
    os._exit(code)

def stop(*_):
    end("Preempted", 33)

here = place()
signal.signal(signal.SIGTERM, stop)
handle_failed_peer()
print(f"rank {here.rank} started", flush=True)
(here.meeting / f"ready-{here.rank}").touch()
while not (here.meeting / f"ready-{1 - here.rank}").exists():
    time.sleep(0.01)
"""


def launch(folder: Path, lines: str) -> "subprocess.Popen[str]":
    """Starts two processes that run these lines once both have started."""
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, PROGRAM + lines],
        env=os.environ | {"TERMINATION_LOG": str(folder / "log"), "GRACE_SECONDS": "4"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_of(process: "subprocess.Popen[str]", folder: Path) -> tuple[int, TerminationMessage, str]:
    """The exit code, the termination message and the output of the launcher."""
    out, errors = process.communicate(timeout=60)
    assert (folder / "log").exists(), errors
    return process.returncode, TerminationMessage.model_validate_json((folder / "log").read_bytes()), out


FAILS_WHILE_RANK_0_WAITS = """
if here.rank == 1:
    while not (here.meeting / "waits").exists():
        time.sleep(0.01)
    end("GPUFault", 31)
try:
    (here.meeting / "waits").touch()
    time.sleep(1000)
except BaseException as error:
"""
"""Rank 1 fails once rank 0 waits. What rank 0 then does follows."""


def test_rank_0_alone_prints_and_its_end_is_that_of_the_pod(tmp_path: Path) -> None:
    code, message, out = end_of(launch(tmp_path, "end('Succeeded', 0)"), tmp_path)
    assert (code, message.reason, message.message) == (0, "Succeeded", "rank 0")
    assert out == "rank 0 started\n"


def test_a_rank_that_fails_ends_the_other_one_with_its_cause(tmp_path: Path) -> None:
    lines = """    assert type(error).__name__ == "PeerFailed"
    write_termination_message(TerminationMessage(reason=error.cause.reason, message=f"told: {error.cause.message}"))
    os._exit(31)
"""
    began = time.monotonic()
    code, message, _ = end_of(launch(tmp_path, FAILS_WHILE_RANK_0_WAITS + lines), tmp_path)
    assert (code, message.reason, message.message) == (31, FailureReason.GPU_FAULT, "told: rank 1")
    assert time.monotonic() - began < 30


def test_without_room_for_the_cause_the_end_of_the_pod_is_still_that_of_the_rank_that_failed(tmp_path: Path) -> None:
    begin = """
if here.rank == 0:
    (here.meeting / "cause.partial").symlink_to("/dev/full")
"""
    lines = """    end("TrainerCrashed", 1)
"""
    code, message, _ = end_of(launch(tmp_path, begin + FAILS_WHILE_RANK_0_WAITS + lines), tmp_path)
    assert (code, message.reason, message.message) == (31, FailureReason.GPU_FAULT, "rank 1")


def test_a_rank_that_is_told_twice_is_interrupted_once(tmp_path: Path) -> None:
    lines = """    os.kill(os.getpid(), signal.SIGUSR1)
    end("GPUFault", 31)
"""
    code, message, _ = end_of(launch(tmp_path, FAILS_WHILE_RANK_0_WAITS + lines), tmp_path)
    assert (code, message.reason, message.message) == (31, FailureReason.GPU_FAULT, "rank 0")


def test_a_rank_that_does_not_end_is_killed(tmp_path: Path) -> None:
    lines = """
if here.rank == 1:
    end("GPUFault", 31)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
time.sleep(1000)
"""
    code, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (code, message.reason, message.message) == (31, FailureReason.GPU_FAULT, "rank 1")


SIGNS = """
import threading
from finetune_trainer.pod.failure import PeerFailed
from finetune_trainer.pod.liveness.pulse import Pulse

def sign(allowed):
    pulse = Pulse(here)
    while True:
        pulse.sign(allowed)
        time.sleep(0.05)
"""
"""What the watchdog of a rank does. The argument is the time that it allows."""


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped_ends_the_training_and_is_named(stopped: int, tmp_path: Path) -> None:
    lines = f"""{SIGNS}
threading.Thread(target=sign, args=(1,), daemon=True).start()
try:
    time.sleep(0.5)
    if here.rank == {stopped}:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)
except PeerFailed as error:
    end(error.cause.reason, 14) if here.rank else None
    told = TerminationMessage(reason=error.cause.reason, message=error.cause.message, checkpoint_step=7)
    write_termination_message(told)
    os._exit(14)
"""
    code, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (code, message.reason) == (14, FailureReason.TRAINING_STALLED)
    assert message.message.startswith(f"Rank {stopped} of 2 gave no sign of life for ")
    assert message.message.endswith(" s. Its process was stopped by a signal.")
    assert message.checkpoint_step == (7 if stopped else None), "rank 0 knows of the checkpoints"


def test_a_rank_that_stalls_because_it_waits_for_a_stopped_one_is_not_the_cause(tmp_path: Path) -> None:
    lines = f"""{SIGNS}
threading.Thread(target=sign, args=(1000,), daemon=True).start()
time.sleep(0.5)
if here.rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(2)
write_termination_message(TerminationMessage(reason="TrainingStalled", message="rank 0 waited", checkpoint_step=7))
os._exit(14)
"""
    code, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (code, message.reason, message.checkpoint_step) == (14, FailureReason.TRAINING_STALLED, 7)
    assert message.message.startswith("Rank 1 of 2 gave no sign of life for ")


def test_a_rank_that_stalls_beside_ranks_that_give_signs_of_life_is_the_cause(tmp_path: Path) -> None:
    lines = f"""{SIGNS}
threading.Thread(target=sign, args=(1000,), daemon=True).start()
if here.rank == 1:
    time.sleep(1)
    end("TrainingStalled", 14)
try:
    time.sleep(1000)
except PeerFailed as error:
    write_termination_message(TerminationMessage(reason=error.cause.reason, message=f"told: {{error.cause.message}}"))
    os._exit(14)
"""
    code, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (code, message.reason, message.message) == (14, FailureReason.TRAINING_STALLED, "told: rank 1")


@pytest.mark.parametrize(
    ("reason", "code", "said"),
    [("PeerLost", 38, ""), ("GPUOutOfMemory", 30, "rank 1"), ("LossDiverged", 29, "rank 1")],
)
def test_a_rank_that_does_not_notice_the_loss_of_another_one_is_killed(
    reason: str, code: int, said: str, tmp_path: Path
) -> None:
    lines = f"if here.rank == 1: end({reason!r}, {code})\ntime.sleep(1000)"
    found, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (found, message.reason) == (code, reason)
    assert message.message.startswith(said)


def test_a_rank_that_waits_for_one_without_memory_is_told_and_killed_without_the_time_to_find_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the code of a GPU could hang like this, in a kernel of NCCL that waits for the other GPU."""
    monkeypatch.setenv("FINDING", "1000")
    lines = """
if here.rank == 1:
    end("GPUOutOfMemory", 30)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
time.sleep(1000)
"""
    code, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (code, message.reason, message.message) == (30, FailureReason.GPU_OUT_OF_MEMORY, "rank 1")


def test_a_rank_that_has_told_its_failure_and_is_held_by_its_gpu_is_still_the_cause(tmp_path: Path) -> None:
    lines = """
if here.rank == 1:
    end("PeerLost", 38)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
write_termination_message(TerminationMessage(reason="GPUFault", message="rank 0", checkpoint_step=7))
time.sleep(1000)
"""
    code, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (code, message.reason, message.checkpoint_step) == (31, FailureReason.GPU_FAULT, 7)


def test_rank_0_is_not_interrupted_by_a_failure_on_which_all_ranks_have_agreed(tmp_path: Path) -> None:
    lines = """
if here.rank == 1:
    end("GPUOutOfMemory", 30, agreed=True)
while not (here.meeting / "rank-1.json").exists():
    time.sleep(0.01)
time.sleep(1)  # as the upload of a checkpoint takes
end("GPUOutOfMemory", 30, agreed=True)
"""
    code, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (code, message.message, message.agreed) == (30, "rank 0", True)


def test_sigterm_reaches_every_rank_once_also_from_a_rank(tmp_path: Path) -> None:
    lines = """
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
if here.rank == 1:
    os.kill(here.launcher, signal.SIGTERM)
    heard.append(1)
while not heard:
    time.sleep(0.01)
os.kill(here.launcher, signal.SIGTERM)
time.sleep(0.5)
end("Preempted" if len(heard) == 1 else "TrainerCrashed", 33)
"""
    code, message, _ = end_of(launch(tmp_path, lines), tmp_path)
    assert (code, message.reason, message.message) == (33, FailureReason.PREEMPTED, "rank 0")


def test_rank_0_has_the_grace_period_and_a_rank_that_ignores_sigterm_is_killed_before_its_end(tmp_path: Path) -> None:
    lines = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(1000)"
    process = launch(tmp_path, lines)
    assert process.stdout
    assert [process.stdout.readline(), process.stdout.readline()] == ["rank 0 started\n", "ready\n"]
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, message, _ = end_of(process, tmp_path)
    assert (code, message.reason) == (33, FailureReason.PREEMPTED)
    assert 3 < time.monotonic() - began < 10


def test_no_rank_outlives_the_launcher(tmp_path: Path) -> None:
    process = launch(tmp_path, "print(os.getpid(), flush=True); time.sleep(1000)")
    assert process.stdout
    process.stdout.readline()
    rank = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{rank}/status").exists() and "\nState:\tZ" not in Path(f"/proc/{rank}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("given", "gpus"),
    [({}, ["0", "1"]), ({"CUDA_VISIBLE_DEVICES": "4,7"}, ["4", "7"]), ({"CUDA_VISIBLE_DEVICES": "3"}, ["3", ""])],
)
def test_every_rank_sees_its_own_gpu(given: dict[str, str], gpus: list[str]) -> None:
    places = [Place(rank, 2, Path("/m")) for rank in range(2)]
    assert [environment(place, given, 8)["CUDA_VISIBLE_DEVICES"] for place in places] == gpus


@pytest.mark.parametrize(("given", "threads"), [({}, "4"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_ranks_share_the_processors(given: dict[str, str], threads: str) -> None:
    assert environment(Place(0, 2), given, 8)["OMP_NUM_THREADS"] == threads
    assert environment(Place(0, 16), {}, 8)["OMP_NUM_THREADS"] == "1"


def test_a_rank_reads_its_place_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Place(3, 4, Path("/scratch/meeting"), 17)
    assert place(told.environment) == told
    assert place({}) == Place(0, 1)
    assert by_rank("The GPU broke.") == "The GPU broke."
    for name, value in told.environment.items():
        monkeypatch.setenv(name, value)
    assert by_rank("The GPU broke.") == "Rank 3 of 4: The GPU broke."
    assert by_rank("Rank 1 of 4: The GPU broke.") == "Rank 1 of 4: The GPU broke."


@pytest.mark.parametrize("given", [{}, {"TORCH_NCCL_RETHROW_CUDA_ERRORS": "1"}])
def test_the_watchdog_of_nccl_lets_a_rank_report_an_error_of_its_gpu(given: dict[str, str]) -> None:
    assert environment(Place(0, 2), given, 8)["TORCH_NCCL_RETHROW_CUDA_ERRORS"] == "0"


def test_the_installed_pytorch_knows_the_variables_of_a_rank() -> None:
    found = importlib.util.find_spec("torch")
    assert found
    assert found.origin
    header = Path(found.origin).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    assert all(name in header.read_text() for name in SURVIVES_GPU_ERRORS)
