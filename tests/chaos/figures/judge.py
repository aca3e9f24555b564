"""What a try shows: how the job ended, whether the reason is the right one, and what had to be done again. Pure."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.chaos.phases import Phase
from tests.chaos.table import Fault, Task
from tests.integration.kube import Object


@dataclass(frozen=True)
class Sample:
    """A look at the job. `seconds`: since the try began. `pod`: uid of the pod at work; "" if there is none."""

    seconds: float
    phase: Phase | None
    pod: str = ""


@dataclass(frozen=True)
class Done:
    """A step that is done. `seconds`: since the try began. `step`: its number, from 1."""

    seconds: float
    step: int


Journal = Sequence[Done]
"""The steps of one pod, in their order."""


@dataclass(frozen=True)
class Seen:
    """What was seen of a job. `journals`: of all pods that have trained, in the order of the pods. `injected`: seconds
    until the fault came. `status`: at the end."""

    samples: Sequence[Sample]
    journals: Sequence[Journal]
    injected: float
    status: Object

    @property
    def reasons(self) -> list[str]:
        """Those of the pods that did not end well, preflights first."""
        tried = [*self.status.get("preflights", []), *self.status.get("attempts", [])]
        return [str(run["reason"]) for run in tried if run.get("reason") not in (None, "Succeeded")]

    @property
    def pod(self) -> str:
        """The pod that the fault hit."""
        return next((s.pod for s in reversed(self.samples) if s.seconds <= self.injected and s.pod), "")

    @property
    def reached(self) -> int:
        """The last step that was done before the fault came."""
        before = (done.step for journal in self.journals for done in journal if done.seconds <= self.injected)
        return max(before, default=0)


@dataclass(frozen=True)
class Outcome:
    """What one try shows. `phase`: in which the fault came, which may be a later one than was wanted.

    `said`: the message on Ready, where the try is not right. `same_weights`: as a job without a fault; None: not
    comparable. `seconds_to_recover`: from the fault until the job was further than before; None: never.
    `seconds_loading`: of these, how long the model was loaded. `date`, `commit`: when it was made, and of what.
    `side_by_side`: how many tries the cluster had room for at that time.
    `note`: what somebody found out about it, written into the file by hand. `mended`: likewise, whether the project was
    changed because of it. Then it is told, but it counts no longer, and it is made again."""

    fault: str
    phase: str
    seed: int
    state: str
    reasons: list[str]
    said: str
    ended_right: bool
    right_reason: bool
    little_lost: bool
    same_weights: bool | None
    steps_repeated: int
    seconds_repeated: float
    seconds_to_recover: float | None
    seconds_loading: float
    seconds: float
    date: str = ""
    commit: str = ""
    side_by_side: int = 0
    note: str = ""
    mended: bool = False

    @property
    def is_right(self) -> bool:
        return self.ended_right and self.right_reason and self.little_lost and self.same_weights is not False


def had_effect(fault: Fault, seen: Seen) -> bool:
    """Whether a fault came in time, and has ended a pod if it is one that does. It may come when the pod has done its
    work, or when the job's pod still waits for a node. Another pod after the one that was hit shows that it was ended,
    also if no attempt says so."""
    if fault.too_late is not None and fault.too_late in _ready(seen.status)["message"]:
        return False
    others = {s.pod for s in seen.samples if s.seconds > seen.injected and s.phase is Phase.TRAIN} - {seen.pod}
    was_training = seen.pod != "" and any(
        s.pod == seen.pod and s.phase not in (None, Phase.PREFLIGHT) for s in seen.samples
    )
    return not fault.ends_pod or bool(seen.reasons) or (was_training and bool(others))


def outcome(task: Task, seen: Seen, same_weights: bool | None = None) -> Outcome:
    """Returns what the try shows."""
    fault, status, samples = task.fault, seen.status, seen.samples
    state, reasons = str(status.get("state", "")), seen.reasons
    ready = _ready(status)
    steps, seconds_again = work_repeated(seen.journals)
    recovery = seconds_to_recover(fault, seen)
    found = Outcome(
        fault=fault.name,
        phase=next((s.phase for s in reversed(samples) if s.seconds <= seen.injected and s.phase), task.phase),
        seed=task.seed,
        state=state,
        reasons=reasons,
        said="",
        ended_right=state == ("Complete" if fault.completes else "Failed"),
        right_reason=_right(fault, reasons, state, ready["reason"]),
        little_lost=seconds_again <= fault.most_seconds_lost,
        same_weights=same_weights,
        steps_repeated=steps,
        seconds_repeated=round(seconds_again, 1),
        seconds_to_recover=None if recovery is None else round(recovery, 1),
        seconds_loading=round(seconds_in(Phase.LOAD, samples, seen.injected, seen.injected + (recovery or 0.0)), 1),
        seconds=round(samples[-1].seconds, 1) if samples else 0.0,
    )
    return found if found.is_right else replace(found, said=ready["message"])


def _ready(status: Object) -> Object:
    """Returns the condition Ready."""
    return next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {"reason": "", "message": ""})


def _right(fault: Fault, reasons: Sequence[str], state: str, ready: str) -> bool:
    """Whether only reasons are given that the fault may have, and one at least if it ends a pod. A job that must fail
    says one of them itself."""
    is_given = bool(reasons) or not fault.ends_pod
    return is_given and set(reasons) <= set(fault.reasons) and (state != "Failed" or ready in fault.reasons)


def work_repeated(journals: Sequence[Journal]) -> tuple[int, float]:
    """Returns how many steps were done again by later pods, and how many seconds the first pods had spent on them. The
    first step of a pod has no duration, because nobody wrote down when it began."""
    spent: dict[int, float] = {}
    steps, seconds = 0, 0.0
    for journal in filter(None, journals):
        again = [done.step for done in journal if done.step in spent]
        steps, seconds = steps + len(again), seconds + sum(spent[step] for step in again)
        pairs = zip([journal[0], *journal], journal, strict=False)
        spent |= {done.step: done.seconds - before.seconds for before, done in pairs if done.step not in spent}
    return steps, seconds


def seconds_to_recover(fault: Fault, seen: Seen) -> float | None:
    """Returns how long after the fault the job was in a later phase than before, or at a later step of the training.

    After a fault that ends its pod, only what other pods do counts, and the same phase is enough: the pod may have been
    at its end. A job that has completed is further than any phase."""
    before = [s.phase.rank for s in seen.samples if s.seconds <= seen.injected and s.phase is not None]
    reached = max(before, default=-1)
    others = [s for s in seen.samples if s.seconds > seen.injected and not (fault.ends_pod and s.pod in ("", seen.pod))]
    if reached == Phase.TRAIN.rank:
        later = [s.seconds for s in others if s.phase is not None and s.phase.rank > reached]
        later += [done.seconds for journal in _after(fault, seen) for done in journal if done.step > seen.reached]
    else:
        least = reached if fault.ends_pod else reached + 1
        later = [s.seconds for s in others if s.phase is not None and s.phase.rank >= least]
    if seen.status.get("state") == "Complete":
        later.append(seen.samples[-1].seconds)
    return min(found) - seen.injected if (found := [each for each in later if each > seen.injected]) else None


def _after(fault: Fault, seen: Seen) -> Sequence[Journal]:
    """Returns the journals of pods that may show that the job goes on."""
    if not fault.ends_pod:
        return seen.journals
    return [journal for journal in seen.journals if journal and journal[0].seconds > seen.injected]


def seconds_in(phase: Phase, samples: Sequence[Sample], since: float = 0.0, until: float = math.inf) -> float:
    """Returns how long the job was in this phase between two moments."""
    pairs = itertools.pairwise(s for s in samples if since <= s.seconds <= until)
    return sum(after.seconds - before.seconds for before, after in pairs if before.phase is phase)
