"""Whole trainings on two nodes: the results are those of one process, and every failure is told once, by both pods."""

import signal
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FAILURES, FailureReason
from tests.integration.finetune_trainer.ranks.pods import Pod, start, start_on_nodes
from tests.integration.finetune_trainer.ranks.test_trainings import AT_STEP_4, KILLED, job, published

__all__ = ["job"]


TWO_HOURS = """
from finetune_trainer.train import work
fetch = work.fetch_model
if rank == 1:
    work.fetch_model = lambda *given: fetch(*given) + 7200
"""
"""Rank 1 says that its node fetched the base model for two hours."""


def ends(pods: Sequence[Pod]) -> tuple[list[int], list[TerminationMessage]]:
    """The exit codes and the termination messages of all pods."""
    found = [pod.end() for pod in pods]
    return [code for code, _ in found], [message for _, message in found]


def test_two_nodes_publish_what_one_process_publishes(job: Any, tmp_path: Path) -> None:
    one, two = job(), job()
    alone, pods = start(one, tmp_path / "one"), start_on_nodes(two, tmp_path / "two", TWO_HOURS)
    assert [alone.end()[0], *ends(pods)[0]] == [0, 0, 0], [pod.errors for pod in pods]
    (expected, weights), (found, others) = published(one), published(two)
    assert (others - weights).norm() / weights.norm() < 1e-5
    assert found["training"]["loss"] == pytest.approx(expected["training"]["loss"], rel=1e-5)
    assert pods[0].log.count("Training: step 1 of 12") == 1
    assert pods[1].log.splitlines()[1:] == [], "rank 0 alone prints"
    report = (Path(two.spec.output.uri) / "report.html").read_text()
    assert "2 h 00 min, while the device waited" in report, "all nodes wait for the slowest one"


def test_a_job_goes_on_on_other_numbers_of_nodes(job: Any, tmp_path: Path) -> None:
    whole, moved = job(), job()
    stop = f"os.kill(os.getpid(), {int(signal.SIGTERM)})"
    assert start(whole, tmp_path / "whole").end()[0] == 0
    code, _ = start(moved, tmp_path / "first", AT_STEP_4.format(rank=0, what=stop), ranks=1).end()
    assert code == FAILURES[FailureReason.PREEMPTED].exit_code
    for attempt, (step, ranks) in enumerate([(5, 1), (8, 2)], start=2):
        patch = AT_STEP_4.replace("== 3", f"== {step}").format(rank=2 * ranks - 1, what=stop)
        pods = start_on_nodes(moved, tmp_path / f"nodes-{attempt}", patch, ranks=ranks, attempt=attempt)
        codes, (message, _) = ends(pods)
        assert codes == [FAILURES[FailureReason.PREEMPTED].exit_code] * 2, [pod.errors for pod in pods]
        assert (message.step, message.checkpoint_step) == (step, step)
    last = start(moved, tmp_path / "last", attempt=4)
    assert last.end()[0] == 0, last.errors
    assert "Resumed at step 8 from the checkpoint of attempt 3." in last.log
    (expected, weights), (found, others) = published(whole), published(moved)
    assert (others - weights).norm() / weights.norm() < 1e-5
    assert found["training"]["loss"] == pytest.approx(expected["training"]["loss"], rel=1e-5)


@pytest.mark.thorough_for("crashed", "rank 0 crashed", "diverged")
@pytest.mark.parametrize(
    ("rank", "what", "reason", "said"),
    [
        (1, KILLED, FailureReason.KILLED, "Signal SIGKILL ended rank 1 of 2 on node machine-1 (exit code 137)"),
        (1, "1 / 0", FailureReason.TRAINER_CRASHED, "Rank 1 of 2 on node machine-1: ZeroDivisionError"),
        (0, "1 / 0", FailureReason.TRAINER_CRASHED, "Rank 0 of 2 on node machine-0: ZeroDivisionError"),
        (1, "return float('nan')", FailureReason.LOSS_DIVERGED, "The loss of step 4 is not a finite number"),
    ],
    ids=["killed", "crashed", "rank 0 crashed", "diverged"],
)
def test_one_rank_fails_and_both_pods_end_with_its_cause(
    rank: int, what: str, reason: FailureReason, said: str, job: Any, tmp_path: Path
) -> None:
    pods = start_on_nodes(job(), tmp_path / "nodes", AT_STEP_4.format(rank=rank, what=what))
    pods[0].wait_for("Training: step 1 of 12")
    began = monotonic()
    codes, messages = ends(pods)
    assert monotonic() - began < 30
    assert [message.reason for message in messages] == [reason] * 2, [pod.errors for pod in pods]
    assert all(message.message.startswith(said) for message in messages), messages
    lost, own = FAILURES[FailureReason.PEER_LOST].exit_code, FAILURES[reason].exit_code
    assert codes == ([own] * 2 if own else [lost, 128 + signal.SIGKILL])


@pytest.mark.thorough_for("0")
@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_of_either_pod_stores_a_checkpoint(asked: int, job: Any, tmp_path: Path) -> None:
    slow = AT_STEP_4.format(rank=1, what="time.sleep(2)")
    pods = start_on_nodes(job(), tmp_path / "nodes", slow)
    pods[0].wait_for("Training: step 1 of 12")
    pods[asked].process.send_signal(signal.SIGTERM)
    codes, (first, _) = ends(pods)
    assert codes == [FAILURES[FailureReason.PREEMPTED].exit_code] * 2, [pod.errors for pod in pods]
    assert first.step == first.checkpoint_step
    assert "Its checkpoint is stored." in first.message


def test_a_pod_that_is_gone_ends_the_other_one(job: Any, tmp_path: Path) -> None:
    pods = start_on_nodes(job(), tmp_path / "nodes", AT_STEP_4.format(rank=1, what="time.sleep(1000)"))
    pods[0].wait_for("Training: step 1 of 12")
    began = monotonic()
    pods[1].process.kill()
    code, message = pods[0].end()
    assert code == FAILURES[FailureReason.PEER_LOST].exit_code, pods[0].errors
    assert message.message == "Node machine-1 (number 1 from 0) was lost: the connection was closed."
    assert monotonic() - began < 30
