"""docs/reliability.md, from the record of the tries."""

import itertools
from collections.abc import Iterator, Sequence
from statistics import median

from scipy.stats import beta

from tests.chaos.figures.judge import Outcome
from tests.chaos.figures.record import Record
from tests.chaos.phases import Phase
from tests.chaos.table import FAULTS, Fault

CONFIDENCE = 0.95
KILLS = {"trainer-sigterm": "SIGTERM", "trainer-sigkill": "SIGKILL"}
_HEAD = """# Reliability

`make chaos` breaks something under a running job, on the [local cluster](devcluster.md) with two nodes. A job is
created, the fault is injected at a random moment of one phase, and the job is watched to its end. The phases are
preflight, load, base evaluation, train, save, tuned evaluation and publish. The tries of a fault go through its phases
in turn. Several jobs run at the same time, each in its own namespace and with its own way to S3. A fault that all jobs
share, such as a restart of the API server, is injected once under several jobs in several phases. Each of these jobs is
a try. The tries of one such outage are not independent of each other.

```sh
make chaos                                  # every fault 20 times; continues where an earlier run stopped
make chaos TRIES=1 FAULTS="node-lost s3-503"
make chaos MINUTES=15                       # begins no try after a quarter of an hour
make chaos TRIES=80 FAULTS="trainer-sigkill trainer-sigterm" PHASES=train SIDE_BY_SIDE=1  # the kills of one job alone
```

Faults of S3 and of the API server happen in a proxy between the pods and the server (`tests/integration/api_proxy.py`).
Faults of a GPU are raised by a stand-in in the trainer's image, because the local cluster has no GPU
(`tests/chaos/harms/stand_in.py`). It also writes down each step, which shows what work was repeated. And it lets the
first attempt rest for 4 s in each short phase and for 0.1 s in each step, so that a fault can come in any of them.
`tests/chaos/table.py` lists every fault, and what must happen. A fault that ends a pod, but came too late to end one,
is no try. Nor is a job that is made again after the first one has published.

This page is written by `make chaos`, from `tests/chaos/record.json`. Do not edit it. The record has each try with its
date and commit. Times depend on the machine: the tries ran on two processors, up to seven of them side by side,
and other work ran beside some of them. Measurements of resumed trainings without a cluster are in
[benchmarks.md](benchmarks.md#resuming-after-kills).

## What the columns mean

| column | meaning |
| --- | --- |
| ended right | the job ended in the state that the fault calls for: Complete, or Failed where no retry can help |
| right reason | no attempt gave another reason than the fault's own, and one gave it if the fault ends a pod |
| little lost | no more work was repeated than the fault allows: none after SIGTERM, otherwise 60 s |
| same weights | of the tries that published weights: those with the weights of a job without a fault, bit for bit |
| at least | lower bound of the share of right tries, with 95% confidence (Clopper-Pearson, one-sided) |
| steps again, seconds again | work that was repeated, the largest of the tries |
| recovery | seconds from the fault until the job was further than before, or another pod as far: median and largest |
"""


def page(record: Record) -> str:
    """Returns the page. Faults without a try are not in it."""
    if not record.outcomes:
        return f"{_HEAD}\nNo figures have been recorded yet.\n"
    parts = (_table(record.counted), _phases(record), _kills(record.counted), _wrong(record.counted), _found(record))
    return "\n".join([_HEAD, *itertools.chain(*parts)]) + "\n"


def lower_bound(right: int, tries: int) -> float:
    """Returns the one-sided Clopper-Pearson bound of a share."""
    return float(beta.ppf(1 - CONFIDENCE, right, tries - right + 1)) if right else 0.0


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "## Faults"
    yield ""
    columns = ["fault", "must end", "tries", "ended right", "right reason", "little lost", "same weights"]
    columns += ["at least", "steps again", "seconds again", "recovery (s)"]
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for fault in FAULTS:
        if tries := [entry for entry in outcomes if entry.fault == fault.name]:
            yield _row(fault, tries)
    right, tried = sum(entry.is_right for entry in outcomes), len(outcomes)
    yield ""
    yield (
        f"{right} of {tried} tries are right in every column. With 95% confidence, at least "
        f"{lower_bound(right, tried):.1%} of such tries are."
    )


def _row(fault: Fault, tries: Sequence[Outcome]) -> str:
    right = sum(entry.is_right for entry in tries)
    weights = [entry.same_weights for entry in tries if entry.same_weights is not None]
    recovered = [entry.seconds_to_recover for entry in tries if entry.seconds_to_recover is not None]
    cells = [
        f"`{fault.name}`: {fault.told}",
        "Complete" if fault.completes else f"Failed: {', '.join(sorted(fault.reasons))}",
        len(tries),
        sum(entry.ended_right for entry in tries),
        sum(entry.right_reason for entry in tries),
        sum(entry.little_lost for entry in tries),
        f"{sum(weights)} of {len(weights)}" if weights else "",
        f"{lower_bound(right, len(tries)):.0%}",
        max(entry.steps_repeated for entry in tries),
        f"{max(entry.seconds_repeated for entry in tries):.1f}",
        _spread(recovered) if recovered else "none",
    ]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _phases(record: Record) -> Iterator[str]:
    yield ""
    yield "Seconds that a job without a fault spends in each phase, by how many of them run at the same time:"
    yield ""
    yield f"| jobs | {' | '.join(Phase)} |"
    yield f"|{' --- |' * (len(Phase) + 1)}"
    for number, seconds in sorted(record.phase_seconds.items()):
        yield f"| {number} | {' | '.join(f'{seconds[phase]:.1f}' for phase in Phase)} |"


def _kills(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yields what a kill costs while the model trains, and whether kills change the weights."""
    yield ""
    yield "## Kills of the trainer"
    yield ""
    yield (
        "While the model trains: seconds from the signal to the first step that was not done before, median and "
        "largest. They include the pause before the retry, and the other jobs that ran on the same two processors. The "
        "last two columns are the largest of the tries: steps that were done again, and the seconds that the killed "
        "pod had spent on them."
    )
    yield ""
    columns = ["signal", "jobs at the same time", "tries", "kill to next step (s)", "without loading the model (s)"]
    yield f"| {' | '.join([*columns, 'steps again', 'seconds again'])} |"
    yield f"|{' --- |' * (len(columns) + 2)}"
    training = [entry for entry in outcomes if entry.phase == Phase.TRAIN]
    for name, side_by_side in itertools.product(KILLS, sorted({entry.side_by_side for entry in training})):
        yield from _kill_row([e for e in training if e.fault == name and e.side_by_side == side_by_side])
    killed = [entry for entry in outcomes if entry.fault in KILLS]
    yield ""
    yield (
        f"In all phases together, {len(killed)} runs were killed. The weights of "
        f"{sum(entry.same_weights is True for entry in killed)} are, bit for bit, those of a job without a fault."
    )


def _kill_row(tries: Sequence[Outcome]) -> Iterator[str]:
    """Yields the row of one signal and one number of jobs, if there is such a try."""
    times = [(e.seconds_to_recover, e.seconds_loading) for e in tries if e.seconds_to_recover is not None]
    if times:
        to_step, beyond = [all for all, _ in times], [all - loading for all, loading in times]
        cells = [KILLS[tries[0].fault], tries[0].side_by_side, len(tries), _spread(to_step), _spread(beyond)]
        cells += [max(e.steps_repeated for e in tries), f"{max(e.seconds_repeated for e in tries):.1f}"]
        yield f"| {' | '.join(str(cell) for cell in cells)} |"


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.0f}, {max(values):.0f}"


def _wrong(outcomes: Sequence[Outcome]) -> Iterator[str]:
    wrong = [entry for entry in outcomes if not entry.is_right]
    yield ""
    yield "## Tries that did not end right"
    yield ""
    yield from _list(wrong) if wrong else ["None."]


def _found(record: Record) -> Iterator[str]:
    if mended := [entry for entry in record.outcomes if entry.mended]:
        yield ""
        yield "## What the tries found"
        yield ""
        yield "The project was changed because of these tries. They are not counted above, and were made again."
        yield ""
        yield from _list(mended)


def _list(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| fault | phase | try | of commit | state | reasons | same weights | message | note |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for entry in outcomes:
        said = entry.said.replace("|", "\\|")[:200]
        reasons = ", ".join(entry.reasons)
        same = {None: "", True: "yes", False: "no"}[entry.same_weights]
        which = f"`{entry.fault}` | {entry.phase} | {entry.seed} | {entry.commit}"
        yield f"| {which} | {entry.state or 'none'} | {reasons} | {same} | {said} | {entry.note} |"
