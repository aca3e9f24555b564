"""Decides from the ends of the ranks how their training ended. Pure functions."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FAILURES, SUPERSEDED_EXIT_CODE, FailureReason, reason_of_exit_code
from finetune_api.signals import ended_by, without_cause
from finetune_trainer.pod.rank import Place
from finetune_trainer.ranks.links import Word, node_named


@dataclass(frozen=True)
class Ended:
    """The end of one rank."""

    rank: int
    code: int
    """Its exit code, as a shell shows it: above 128 it contains a signal."""
    message: TerminationMessage
    """What it reported, or what its exit code shows."""
    is_silent: bool = False
    """Whether the launcher ended it, because it gave no sign of life."""

    @property
    def reason(self) -> str:
        """The reason that it reported."""
        return str(self.message.reason)


def ended(place: Place, returncode: int, reported: str) -> Ended:
    """Returns the end of the rank at `place`. `returncode`: as of Popen, negative for a signal. `reported`: its
    termination message as JSON; "" for a process that could not write one."""
    code = returncode if returncode >= 0 else 128 - returncode
    if reported:
        return Ended(place.rank, code, TerminationMessage.model_validate_json(reported))
    if code == 0:
        return Ended(place.rank, code, TerminationMessage(reason="Succeeded", message=""))
    if code > 128:
        finding, reason = ended_by(code, str(place))
    else:
        finding, reason = without_cause(code, str(place)), reason_of_exit_code(code)
    return Ended(place.rank, code, TerminationMessage(reason=reason, message=finding))


def killed(place: Place, stopping: bool) -> Ended:
    """Returns the end of a rank that the launcher killed, because it did not end by itself. `stopping`: whether the pod
    received SIGTERM."""
    if stopping:
        reason, finding = (
            FailureReason.PREEMPTED,
            "The pod received SIGTERM, and not all its processes stopped in time.",
        )
    else:
        reason, finding = FailureReason.PEER_LOST, f"{str(place).capitalize()} did not end after the others."
    return Ended(place.rank, 128 + signal.SIGKILL, TerminationMessage(reason=reason, message=finding))


def silent(place: Place, seconds: float, why: str) -> Ended:
    """Returns the end of a rank that gave no sign of life for `seconds`. `why`: what the system says of its process."""
    reason = FailureReason.TRAINING_STALLED
    finding = f"{str(place).capitalize()} gave no sign of life for {seconds:,.0f} s. {why}".rstrip()
    return Ended(place.rank, FAILURES[reason].exit_code, TerminationMessage(reason=reason, message=finding), True)


def is_alarm(end: Ended, stopping: bool) -> bool:
    """Returns whether the other ranks have to end at once because of this end. `stopping`: whether they were all asked
    to stop, so that they end by themselves."""
    if end.code == 0 or end.reason == FailureReason.PEER_LOST or (stopping and end.reason == FailureReason.PREEMPTED):
        return False
    return end.rank == 0 or not is_common(end)


def is_common(end: Ended) -> bool:
    """Returns whether all ranks find the same in the same step of the training: the loss of the whole step, or what
    they have told each other. Rank 0 reports such a failure itself, and first lets the upload of a checkpoint end."""
    return end.reason == FailureReason.LOSS_DIVERGED or end.message.agreed is True


def is_loss(end: Ended, stopping: bool) -> bool:
    """Returns whether the others cannot go on without this rank, but still have to find that out themselves."""
    return end.code != 0 and not stopping and not is_alarm(end, stopping)


def lost_node(word: Word, nodes: int) -> TerminationMessage:
    """Returns the message that a node was lost. `word`: what shows it. `nodes`: number of nodes."""
    finding = f"{node_named(word.node, nodes, word.name)} was lost: {word.why}."
    return TerminationMessage(reason=FailureReason.PEER_LOST, message=finding)


def outcome(ends: Sequence[Ended], published: bool = False, cause: TerminationMessage | None = None) -> Ended:
    """Returns the end that the pod reports. `ends`: those of its ranks, in the order in which they ended. `published`:
    whether rank 0, on another node, has ended well. `cause`: why the training ends, if another node has told it.

    It is that of the rank that failed first. A rank that only lost another one comes last. The message is that of rank
    0 if it reports the same reason, because only rank 0 knows of the checkpoints. But a rank that stalled while it
    waited for a silent one names the wrong rank. Each rank counts the results that it has kept itself: the largest
    number is told."""
    first = next((end for end in ends if end.rank == 0), None)
    failed = [end for end in ends if end.code]
    if first is not None and (first.code == 0 or not failed):
        return first
    if published or not failed:
        return Ended(ends[0].rank, 0, TerminationMessage(reason="Succeeded", message=""))
    causes = [end for end in failed if end.reason != FailureReason.PEER_LOST]
    told = (causes or failed)[0]
    if first and first.reason == told.reason:
        said = (told if told.is_silent else first).message.message
        told = replace(told, message=first.message.model_copy(update={"message": said}))
    kept = max((end.message.kept_results or 0 for end in ends), default=0)
    told = replace(told, message=told.message.model_copy(update={"kept_results": kept or None}))
    if cause is None or causes:
        return told
    return replace(told, message=told.message.model_copy(update={"reason": cause.reason, "message": cause.message}))


def exit_code(end: Ended) -> int:
    """Returns the exit code of the pod: that of the reason, or that of the rank if its reason has none."""
    if end.code == 0 or end.code == SUPERSEDED_EXIT_CODE or not isinstance(end.message.reason, FailureReason):
        return end.code
    return FAILURES[end.message.reason].exit_code or end.code
