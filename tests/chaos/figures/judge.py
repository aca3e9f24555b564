"""What a try shows: how the job ended, whether the reason is the right one, and what had to be done again. Pure."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.chaos.phases import Phase
from tests.chaos.table import Fault, Task
from tests.integration.kube import Object


@dataclass(frozen=True)
class Sample:
    """A look at the job. `seconds`: since the try began. `attempt`: of the training; 0 before there is one."""

    seconds: float
    phase: Phase | None
    attempt: int = 0
    step: int = 0
    resumed_from: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one try shows. `phase`: in which the fault came, which may be a later one than was wanted.

    `said`: the message on Ready, where the try is not right. `same_weights`: as a job without a fault; None: not
    comparable. `seconds_to_recover`: from the fault until the job was further than before; None: never.
    `seconds_loading`: of these, how long the model was loaded. `date`, `commit`: when it was made, and of what.
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
    note: str = ""
    mended: bool = False

    @property
    def is_right(self) -> bool:
        return self.ended_right and self.right_reason and self.little_lost and self.same_weights is not False


def outcome(
    task: Task, samples: Sequence[Sample], injected: float, status: Object, same_weights: bool | None = None
) -> Outcome:
    """Returns what the try shows. `injected`: seconds until the fault came. `status`: at the end."""
    fault, state = task.fault, str(status.get("state", ""))
    ready = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {"reason": "", "message": ""})
    tried = [*status.get("preflights", []), *status.get("attempts", [])]
    reasons = [str(run["reason"]) for run in tried if run.get("reason") not in (None, "Succeeded")]
    repeated = steps_repeated(samples)
    seconds_repeated = repeated * seconds_per_step(samples)
    recovery = seconds_to_recover(samples, injected)
    found = Outcome(
        fault=fault.name,
        phase=next((s.phase for s in reversed(samples) if s.seconds <= injected and s.phase), task.phase),
        seed=task.seed,
        state=state,
        reasons=reasons,
        said="",
        ended_right=state == ("Complete" if fault.completes else "Failed"),
        right_reason=_right(fault, reasons, state, ready["reason"]),
        little_lost=seconds_repeated <= fault.most_seconds_lost,
        same_weights=same_weights,
        steps_repeated=repeated,
        seconds_repeated=round(seconds_repeated, 1),
        seconds_to_recover=None if recovery is None else round(recovery, 1),
        seconds_loading=round(seconds_in(Phase.LOAD, samples, injected, injected + (recovery or 0.0)), 1),
        seconds=round(samples[-1].seconds, 1) if samples else 0.0,
    )
    return found if found.is_right else replace(found, said=ready["message"])


def _right(fault: Fault, reasons: Sequence[str], state: str, ready: str) -> bool:
    """Whether only reasons are given that the fault may have. A job that must fail says one of them itself."""
    return set(reasons) <= set(fault.reasons) and (state != "Failed" or ready in fault.reasons)


def steps_repeated(samples: Sequence[Sample]) -> int:
    """Returns how many optimizer steps were done again, by pods that began behind the step that another had reached."""
    repeated, reached = 0, 0
    for run in _runs(samples):
        began, top = max(sample.resumed_from for sample in run), max(sample.step for sample in run)
        repeated += max(0, min(reached, top) - began)
        reached = max(reached, top)
    return repeated


def _runs(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Yields the samples of each pod: a new attempt or a lower step shows another one."""
    run: list[Sample] = []
    for sample in samples:
        if run and (sample.attempt != run[-1].attempt or sample.step < run[-1].step):
            yield run
            run = []
        run.append(sample)
    if run:
        yield run


def seconds_per_step(samples: Sequence[Sample]) -> float:
    """Returns the mean time of a step: in each pod, from the begin of its training to the first look at its last step.

    A pod reports its step every ten seconds only."""
    seconds, steps = 0.0, 0
    for run in _runs(samples):
        began, top = max(sample.resumed_from for sample in run), max(sample.step for sample in run)
        since = next((sample.seconds for sample in run if sample.phase is Phase.TRAIN), None)
        if since is not None and top > began:
            seconds += next(sample.seconds for sample in run if sample.step == top) - since
            steps += top - began
    return seconds / steps if steps else 0.0


def seconds_to_recover(samples: Sequence[Sample], injected: float) -> float | None:
    """Returns how long after the fault the job was in a later phase than before, or at a later step of this phase."""
    before = [s for s in samples if s.seconds <= injected and s.phase is not None]
    reached = max((_place(s) for s in before), default=(0, 0))
    later = [s.seconds for s in samples if s.seconds > injected and s.phase is not None and _place(s) > reached]
    return later[0] - injected if later else None


def seconds_in(phase: Phase, samples: Sequence[Sample], since: float = 0.0, until: float = math.inf) -> float:
    """Returns how long the job was in this phase between two moments."""
    pairs = itertools.pairwise(s for s in samples if since <= s.seconds <= until)
    return sum(after.seconds - before.seconds for before, after in pairs if before.phase is phase)


def _place(sample: Sample) -> tuple[int, int]:
    """How far the job is: the phase, and within the training the step."""
    assert sample.phase is not None
    return sample.phase.rank, sample.step if sample.phase is Phase.TRAIN else 0
