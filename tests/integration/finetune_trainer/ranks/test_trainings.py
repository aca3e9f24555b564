"""Whole trainings with several processes: the results are those of one process, and every failure is told once."""

import json
import signal
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.bundle import Bundle
from finetune_api.reasons import FAILURES, FailureReason
from tests.integration.finetune_trainer.ranks.pods import start, start_command
from tests.integration.finetune_trainer.trainings import applied, prepare
from tests.unit.finetune_trainer.conftest import MakeBundle

IN_FP32 = {"type": "QLoRA", "quantization": {"computeDtype": "Float32"}}
TRAINING = {"epochs": 2, "globalBatchSize": 8}
AT_STEP_4 = """
def step(*given, **more):
    if given[5] == 3 and rank == {rank}:
        {what}
    return take(*given, **more)
loop.accumulate_gradients = step
"""
"""Something that happens in the fourth step of one rank."""


def published(bundle: Bundle) -> tuple[dict[str, Any], torch.Tensor]:
    """The manifest, and all weights of the adapter in one row."""
    output = Path(bundle.spec.output.uri)
    weights = load_file(output / "adapter" / "adapter_model.safetensors")
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return manifest, torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.fixture
def job(make_bundle: MakeBundle, tmp_path: Path) -> Any:
    """A prepared job in fp32; every call makes another one of the same settings."""
    made: list[Bundle] = []

    def make(**parts: Any) -> Bundle:
        wanted = {"method": IN_FP32, "training": TRAINING, "output": {"uri": str(tmp_path / f"output{len(made)}")}}
        made.append(make_bundle(**wanted | parts))
        prepare(made[-1])
        return made[-1]

    return make


def test_two_processes_publish_what_one_publishes_and_rank_0_alone_prints(job: Any, tmp_path: Path) -> None:
    one, two = job(), job(compute={"gpusPerNode": 2})
    alone, pod = start(one, tmp_path / "one"), start_command(two, tmp_path / "two")
    assert [alone.end()[0], pod.end()[0]] == [0, 0], pod.errors
    (expected, weights), (found, others) = published(one), published(two)
    assert (others - weights).norm() / weights.norm() < 1e-5
    now = {"evaluation": {"observedTime"}, "training": {"observedTime", "estimatedCompletionTime", "tokensPerSecond"}}
    assert {k: v for k, v in found["evaluation"].items() if k not in now["evaluation"] | {"verdict"}} == {
        k: v for k, v in expected["evaluation"].items() if k not in now["evaluation"] | {"verdict"}
    }
    assert found["training"]["loss"] == pytest.approx(expected["training"]["loss"], rel=1e-5)
    assert pod.log.count("Training: step 1 of 12") == 1
    assert [status.get("artifacts") is not None for status in applied(pod.log)].count(True) == 1


def test_a_job_goes_on_with_another_number_of_processes(job: Any, tmp_path: Path) -> None:
    whole, moved = job(), job()
    stop = f"os.kill(os.getpid(), {int(signal.SIGTERM)})"
    assert start(whole, tmp_path / "whole").end()[0] == 0
    first = start(moved, tmp_path / "first", AT_STEP_4.format(rank=1, what=stop), ranks=2)
    code, message = first.end()
    assert code == FAILURES[FailureReason.PREEMPTED].exit_code, first.errors
    assert (message.step, message.checkpoint_step) == (3, 3)
    assert "stopped after step 3 of 12. Its checkpoint is stored." in message.message
    second = AT_STEP_4.replace("== 3", "== 7").format(rank=3, what=stop)
    code, message = start(moved, tmp_path / "second", second, ranks=4, attempt=2).end()
    assert (message.step, message.checkpoint_step) == (7, 7)
    last = start(moved, tmp_path / "last", attempt=3)
    assert last.end()[0] == 0, last.errors
    assert "Resumed at step 7 from the checkpoint of attempt 2." in last.log
    (expected, weights), (found, others) = published(whole), published(moved)
    assert (others - weights).norm() / weights.norm() < 1e-5
    assert found["training"]["loss"] == pytest.approx(expected["training"]["loss"], rel=1e-5)


KILLED = "os.kill(os.getpid(), 9)"
STALLED = "from finetune_trainer.pod.liveness import heartbeat; heartbeat.LEAST_SECONDS = 3.0; time.sleep(1000)"


@pytest.mark.thorough_for("rank 0 crashed", "diverged")
@pytest.mark.parametrize(
    ("rank", "what", "reason", "said"),
    [
        (1, KILLED, FailureReason.KILLED, "Signal SIGKILL ended rank 1 of 2 (exit code 137)"),
        (1, "1 / 0", FailureReason.TRAINER_CRASHED, "Rank 1 of 2: ZeroDivisionError"),
        (0, "1 / 0", FailureReason.TRAINER_CRASHED, "Rank 0 of 2: ZeroDivisionError"),
        (1, STALLED, FailureReason.TRAINING_STALLED, "Rank 1 of 2: The trainer made no progress for "),
        (1, "return float('nan')", FailureReason.LOSS_DIVERGED, "The loss of step 4 is not a finite number"),
    ],
    ids=["killed", "crashed", "rank 0 crashed", "stalled", "diverged"],
)
def test_one_rank_fails_and_all_end_with_its_cause(
    rank: int, what: str, reason: FailureReason, said: str, job: Any, tmp_path: Path
) -> None:
    pod = start(job(), tmp_path / "pod", AT_STEP_4.format(rank=rank, what=what), ranks=2)
    pod.wait_for("Training: step 1 of 12")
    ranks, began = pod.ranks, monotonic()
    code, message = pod.end()
    assert monotonic() - began < 30
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert code == (FAILURES[reason].exit_code or 128 + signal.SIGKILL), pod.errors
    assert message.reason == reason
    assert message.message.startswith(said)
    if reason is not FailureReason.KILLED or rank:
        condition = applied(pod.log)[-1]["conditions"][-1]
        assert (condition["status"], condition["reason"]) == ("False", reason)
        assert condition["message"].startswith(said)


STOPPED = """
from finetune_trainer.pod.liveness import heartbeat, watchdog
heartbeat.LEAST_SECONDS, watchdog.MARGIN_SECONDS = 3.0, 1.0
time.sleep(1.5)
os.kill(os.getpid(), 19)
"""
"""The process is stopped after a sign of life that announces the next one within seconds."""


@pytest.mark.thorough_for("0")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_while_the_other_one_waits_is_named(rank: int, job: Any, tmp_path: Path) -> None:
    pod = start(job(), tmp_path / "pod", AT_STEP_4.format(rank=rank, what=f"exec({STOPPED!r}, globals())"), ranks=2)
    code, message = pod.end()
    said = f"Rank {rank} of 2 gave no sign of life for "
    assert (code, message.reason) == (FAILURES[FailureReason.TRAINING_STALLED].exit_code, "TrainingStalled"), pod.errors
    assert message.message.startswith(said)
    assert message.message.endswith("Its process was stopped by a signal.")
    if rank:
        assert message.step == 3, "rank 0 tells how far the training is"
        assert applied(pod.log)[-1]["conditions"][-1]["message"].startswith(said)


HANGS = """
from finetune_trainer.pod.liveness import heartbeat
from finetune_trainer.ranks import group
class Never:
    def is_completed(self):
        return False
group.dist.all_reduce = lambda *given, **more: Never()
heartbeat.patience = lambda wanted: 3.0
"""
"""A sum of the gradients that does not end on any rank, as it happens with NCCL."""


def test_a_sum_of_the_gradients_that_never_ends_is_a_stall(job: Any, tmp_path: Path) -> None:
    at_step_4 = AT_STEP_4.format(rank="rank", what=f"exec({HANGS!r}, globals())")
    code, message = start(job(), tmp_path / "pod", at_step_4, ranks=2).end()
    assert code == FAILURES[FailureReason.TRAINING_STALLED].exit_code
    assert "The trainer made no progress for 3 s while training, after step 3 of 12." in message.message


READS_ALONE = """
from finetune_trainer.evaluation.kept_answers import KeptAnswers
from finetune_trainer.pod.failure import TrainerFailure
def denied(*given):
    raise TrainerFailure("StorageAccessDenied", "Access was denied.")
def slow(*given):
    time.sleep(1000)
KeptAnswers.earlier = denied if rank == 1 else slow
"""
"""Rank 1 alone may not read from the storage, while rank 0 works for long."""


def test_a_rank_that_alone_cannot_read_from_the_storage_ends_the_others(job: Any, tmp_path: Path) -> None:
    pod = start(job(), tmp_path / "pod", READS_ALONE, ranks=2)
    code, message = pod.end()
    assert code == FAILURES[FailureReason.STORAGE_ACCESS_DENIED].exit_code, pod.errors
    assert message.message == "Access was denied."
    assert applied(pod.log)[-1]["conditions"][-1]["reason"] == FailureReason.STORAGE_ACCESS_DENIED


SLOW_UPLOAD = """
from finetune_trainer.checkpoints.store import CheckpointStore
write = CheckpointStore.write
begun = place().meeting / "upload"
def slow(self, step, open, words, best, advance):
    if step == 3:
        begun.touch()
        for _ in range(30):
            time.sleep(0.1)
            advance(0)
    return write(self, step, open, words, best, advance)
CheckpointStore.write = slow
"""
"""The upload of the checkpoint of step 3 takes three seconds more."""
FAILS_DURING_THE_UPLOAD = "while not begun.exists(): time.sleep(0.01)\n        1 / 0"


def test_a_rank_that_fails_does_not_stop_an_upload_that_is_under_way(job: Any, tmp_path: Path) -> None:
    bundle = job(training=TRAINING | {"checkpoint": {"every": 3}})
    step = AT_STEP_4.format(rank=1, what=FAILS_DURING_THE_UPLOAD)
    code, message = start(bundle, tmp_path / "pod", SLOW_UPLOAD + step, ranks=2).end()
    assert code == FAILURES[FailureReason.TRAINER_CRASHED].exit_code
    assert message.message.startswith("Rank 1 of 2: ZeroDivisionError")
    assert message.checkpoint_step == 3


def test_sigterm_of_the_pod_stores_a_checkpoint(job: Any, tmp_path: Path) -> None:
    pod = start(job(), tmp_path / "pod", AT_STEP_4.format(rank=1, what="print(1, flush=True); time.sleep(2)"), ranks=2)
    pod.wait_for("Training: step 1 of 12")
    pod.process.send_signal(signal.SIGTERM)
    code, message = pod.end()
    assert code == FAILURES[FailureReason.PREEMPTED].exit_code, pod.errors
    assert message.step == message.checkpoint_step
    assert "Its checkpoint is stored." in message.message


LEAVES_IN_AN_UPDATE = """
from torch.optim.optimizer import register_optimizer_step_pre_hook
updates = []
def leave(*_):
    updates.append(1)
    if len(updates) == 4 and rank == 1:
        os.kill(place().launcher, 15)
        os._exit(33)
register_optimizer_step_pre_hook(leave)
"""
"""Rank 1 asks for the end of the pod and is gone, while the others change the weights in step 4."""


def test_after_sigterm_a_checkpoint_has_the_weights_of_its_step_also_without_the_other_rank(
    job: Any, tmp_path: Path
) -> None:
    pod = start(job(), tmp_path / "pod", LEAVES_IN_AN_UPDATE, ranks=2)
    code, message = pod.end()
    assert code == FAILURES[FailureReason.PREEMPTED].exit_code, pod.errors
    assert (message.step, message.checkpoint_step) == (4, 4), "rank 0 has changed the weights for the fourth time"


def test_a_slow_rank_is_waited_for(job: Any, tmp_path: Path) -> None:
    bundle = job(runPolicy={"stallTimeoutSeconds": 60})
    slow = """
        from finetune_trainer.pod.liveness import heartbeat
        heartbeat.LEAST_SECONDS = 2.0
        heartbeat.patience = lambda wanted: 2.0
    """
    step = AT_STEP_4.format(rank=1, what="[(time.sleep(0.5), heartbeat.beat()) for _ in range(10)]")
    pod = start(bundle, tmp_path / "pod", "\n".join(line.strip() for line in slow.splitlines()) + step, ranks=2)
    assert pod.end()[0] == 0, pod.errors
