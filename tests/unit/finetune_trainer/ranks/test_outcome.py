"""One reason is told of a training whose ranks end in different ways."""

import signal

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FAILURES, SUPERSEDED_EXIT_CODE, FailureReason
from finetune_trainer.pod.rank import Place
from finetune_trainer.ranks.outcome import Ended, ended, exit_code, is_alarm, is_loss, killed, outcome

KILLED, LOST, PREEMPTED = FailureReason.KILLED, FailureReason.PEER_LOST, FailureReason.PREEMPTED
CRASHED, DIVERGED = FailureReason.TRAINER_CRASHED, FailureReason.LOSS_DIVERGED


def end(rank: int, reason: FailureReason | None, agreed: bool | None = None) -> Ended:
    """A rank that reported this reason; None: it has ended well."""
    code = FAILURES[reason].exit_code or 137 if reason else 0
    return Ended(rank, code, TerminationMessage(reason=reason or "Succeeded", message=f"of rank {rank}", agreed=agreed))


@pytest.mark.parametrize(
    ("ends", "code", "message"),
    [
        ([end(1, CRASHED), end(0, LOST)], 34, "of rank 1"),
        ([end(0, LOST), end(1, CRASHED)], 34, "of rank 1"),
        ([end(2, LOST), end(1, KILLED), end(0, LOST)], 137, "of rank 1"),
        ([end(1, CRASHED), end(0, CRASHED)], 34, "of rank 0"),
        ([end(1, KILLED), Ended(0, 37, end(0, KILLED).message)], 137, "of rank 0"),
        ([end(1, DIVERGED), end(0, DIVERGED)], 29, "of rank 0"),
        ([end(1, PREEMPTED), end(0, PREEMPTED)], 33, "of rank 0"),
        ([end(0, CRASHED), end(1, KILLED)], 34, "of rank 0"),
        ([end(1, LOST), end(0, LOST)], 38, "of rank 0"),
        ([end(1, None), end(0, CRASHED)], 34, "of rank 0"),
        ([end(1, None), end(0, None)], 0, "of rank 0"),
        ([end(0, None), end(1, CRASHED)], 0, "of rank 0"),
    ],
    ids=[
        "the cause first",
        "the lost connection first",
        "of three",
        "told",
        "told of a signal",
        "found by all",
        "stopped",
        "rank 0 first",
        "no cause",
        "rank 0 after the others",
        "well",
        "a crash after the results are published",
    ],
)
def test_the_cause_outranks_a_lost_connection_and_rank_0_knows_most(ends: list[Ended], code: int, message: str) -> None:
    found = outcome(ends)
    assert (exit_code(found), found.message.message) == (code, message)


@pytest.mark.parametrize("reason", [CRASHED, PREEMPTED])
def test_the_results_that_any_rank_has_kept_are_told(reason: FailureReason) -> None:
    def kept(rank: int, results: int | None) -> Ended:
        message = TerminationMessage(reason=PREEMPTED, message=f"of rank {rank}", step=7 - rank, kept_results=results)
        return Ended(rank, 33, message)

    last = Ended(3, 33, TerminationMessage(reason=reason, message="of rank 3"))
    assert outcome([kept(0, 4), kept(1, 6), kept(2, None), last]).message == TerminationMessage(
        reason=PREEMPTED, message="of rank 0", step=7, kept_results=6
    )
    assert outcome([last, end(0, LOST), kept(1, 6)]).message.kept_results == 6
    assert outcome([end(0, LOST), last]).message.kept_results is None


@pytest.mark.parametrize(
    ("one", "stopping", "alarm"),
    [
        (end(1, CRASHED), False, True),
        (end(1, KILLED), False, True),
        (end(0, DIVERGED), False, True),
        (end(1, DIVERGED), False, False),
        (end(1, FailureReason.GPU_OUT_OF_MEMORY), False, True),
        (end(1, FailureReason.GPU_OUT_OF_MEMORY, agreed=True), False, False),
        (end(1, FailureReason.STORAGE_ACCESS_DENIED), False, True),
        (end(1, FailureReason.MODEL_NOT_FOUND), False, True),
        (end(1, FailureReason.STORAGE_UNAVAILABLE), False, True),
        (end(1, LOST), False, False),
        (end(1, PREEMPTED), True, False),
        (end(1, PREEMPTED), False, True),
        (end(1, CRASHED), True, True),
        (end(1, None), False, False),
    ],
)
def test_the_others_end_at_once_unless_they_find_the_same_themselves(one: Ended, stopping: bool, alarm: bool) -> None:
    assert is_alarm(one, stopping) is alarm


@pytest.mark.parametrize(
    ("one", "stopping", "loss"),
    [
        (end(1, LOST), False, True),
        (end(1, DIVERGED), False, True),
        (end(1, None), False, False),
        (end(1, CRASHED), False, False),
        (end(1, LOST), True, False),
        (end(1, PREEMPTED), True, False),
    ],
)
def test_the_others_have_time_to_find_the_end_themselves_unless_they_are_told_or_stopped(
    one: Ended, stopping: bool, loss: bool
) -> None:
    assert is_loss(one, stopping) is loss


@pytest.mark.parametrize(
    ("returncode", "reported", "code", "reason", "message"),
    [
        (34, '{"reason": "TrainerCrashed", "message": "Why."}', 34, CRASHED, "Why."),
        (0, "", 0, "Succeeded", ""),
        (-9, "", 137, KILLED, "Signal SIGKILL ended rank 1 of 2 (exit code 137), but"),
        (-11, "", 139, CRASHED, "Signal SIGSEGV ended rank 1 of 2 (exit code 139), which"),
        (14, "", 14, FailureReason.TRAINING_STALLED, "Rank 1 of 2 ended with exit code 14 without reporting a cause."),
        (1, "", 1, CRASHED, "Rank 1 of 2 ended with exit code 1 without reporting a cause."),
    ],
)
def test_a_rank_that_could_not_report_is_told_by_its_exit_code(
    returncode: int, reported: str, code: int, reason: str, message: str
) -> None:
    found = ended(Place(1, 2), returncode, reported)
    assert (found.code, found.reason) == (code, reason)
    assert found.message.message.startswith(message)


@pytest.mark.parametrize(("stopping", "reason"), [(True, PREEMPTED), (False, LOST)])
def test_a_rank_that_the_launcher_kills_is_not_the_cause(stopping: bool, reason: FailureReason) -> None:
    assert killed(Place(1, 2), stopping).reason == reason


@pytest.mark.parametrize("reason", FailureReason)
def test_the_pod_ends_with_the_exit_code_of_the_reason(reason: FailureReason) -> None:
    found = Ended(1, 128 + signal.SIGKILL, TerminationMessage(reason=reason, message=""))
    assert exit_code(found) == (FAILURES[reason].exit_code or 137)


def test_a_pod_that_was_replaced_ends_as_one_process_does() -> None:
    replaced = Ended(0, SUPERSEDED_EXIT_CODE, TerminationMessage(reason="Superseded", message="Stopped."))
    assert exit_code(replaced) == SUPERSEDED_EXIT_CODE
    assert exit_code(end(0, None)) == 0
