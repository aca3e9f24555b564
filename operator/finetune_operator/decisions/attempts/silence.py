"""A pod that runs and writes nothing: its node, its network or its process has stopped without anybody noticing.

The trainer ends itself when it makes no progress (spec.runPolicy.stallTimeoutSeconds). This limit is for a trainer that
cannot even do that, in an attempt or in a preflight."""

from datetime import datetime, timedelta

from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.standing import RunStanding, Standing
from finetune_operator.observed.world import World

SILENCE = timedelta(hours=6)
"""Longest time without a sign of life. Loading, a measurement or an upload may take hours, and write nothing."""
PREFLIGHT_SILENCE = timedelta(hours=24)
"""Likewise for a preflight, which writes only its result. With many rows it may work for many hours."""
STALLS = 3
"""The limit is at least so many times spec.runPolicy.stallTimeoutSeconds, the time that one row or step may take."""


def silent(world: World, number: int, run: Run, standing: RunStanding, now: datetime) -> str | None:
    """Return a finding if the pod of attempt `number` has given no sign of life for too long; else None.

    `number`: 0 for a preflight, which writes its result at its end. Its own watchdog ends one that hangs sooner."""
    left, most = silent_in(world, number, run, standing, now), longest(world, number)
    if left is None or most is None or left > timedelta(0):
        return None
    hours = most / timedelta(hours=1)
    what = "The training pod" if number else "The preflight pod"
    missing = "progress" if number else "result"
    return f"{what} has run for {hours:.0f} hours without writing its {missing} in the status."


def longest(world: World, number: int) -> timedelta | None:
    """Return the longest time without a sign of life of attempt `number`; 0 for a preflight.

    None for a job whose spec this version cannot read: nobody knows how long one of its rows or steps may take."""
    if world.spec is None:
        return None
    stall = world.spec.policy.stall_timeout_seconds or 0
    return max(SILENCE if number else PREFLIGHT_SILENCE, STALLS * timedelta(seconds=stall))


def silent_in(world: World, number: int, run: Run, standing: RunStanding, now: datetime) -> timedelta | None:
    """Return after which time the silence of a running pod is too long; None if it does not run or has no limit."""
    most = longest(world, number)
    if most is None or standing.standing is not Standing.RUNNING or run.pod is None or run.pod.started is None:
        return None
    signs = [run.pod.started + run.pod.behind]
    writer = next((pod for pod in run.on_nodes if pod.index == 0), run.pod)  # what it writes has times of its node
    if number and world.progress.attempt == number and world.progress.observed is not None:
        signs.append(min(world.progress.observed + writer.behind, now))  # the clock of the pod may be ahead
    if number:
        said = [c for c in world.status.conditions or [] if world.authors.get(c.type) == number]
        signs += [condition.last_transition_time + writer.behind for condition in said]
    return min(max(signs), now) + most - now
