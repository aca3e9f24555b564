"""One try: a job is created, a fault is injected at a random moment of a phase, and the job is watched to its end.
A fault that all jobs share is injected once under several jobs, each of which is a try."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import mean

from tests.chaos.figures.judge import Outcome, Seen, had_effect, outcome, seconds_in
from tests.chaos.phases import Phase
from tests.chaos.scene import Lane
from tests.chaos.table import Task
from tests.chaos.watcher import Watcher, await_end, await_phase, remove
from tests.integration.jobs import Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for

MOST_TURNS = 5
LOOK_SECONDS = 0.2
LATE_SECONDS = 20.0
"""How long the status of a job may take to say that it has ended, once its pod has."""


@dataclass(frozen=True)
class Undisturbed:
    """What a job without a fault shows. `seconds`: in each phase. `begins`: seconds from its creation to each phase.
    `weights`: digest of its adapter."""

    seconds: dict[str, float]
    begins: dict[str, float]
    weights: str


def undisturbed(lanes: Sequence[Lane]) -> Undisturbed:
    """Runs a job without a fault in each lane, all at once as the tries run, and returns what they show."""
    watchers = [Watcher(lane, lane.start(f"undisturbed-{lane.tenant.namespace}")) for lane in lanes]
    for watcher in watchers:
        await_end(watcher)
        watcher.stop()
        assert watcher.status["state"] == "Complete", watcher.status
    digests = {weights_of(watcher.lane, watcher.job) for watcher in watchers}
    assert len(digests) == 1, f"jobs without a fault have other weights each: {digests}"
    for watcher in watchers:
        remove(watcher.job)
    return Undisturbed(
        seconds={phase: _mean(seconds_in(phase, watcher.samples) for watcher in watchers) for phase in Phase},
        begins={phase: _mean(_begin_of(phase, watcher) for watcher in watchers) for phase in Phase},
        weights=digests.pop(),
    )


def _begin_of(phase: Phase, watcher: Watcher) -> float:
    reached = (s.seconds for s in watcher.samples if s.phase is not None and s.phase.rank >= phase.rank)
    return next(reached, watcher.samples[-1].seconds)


def _mean(values: Iterable[float]) -> float:
    return round(mean(values), 2)


def alone(lane: Lane, task: Task, basis: Undisturbed) -> Outcome:
    """Makes one try of a fault that hits one job. Where a job leaves its phase before the fault comes, or the fault
    finds nothing left to end, another one is made.

    Raises AssertionError if none is hit."""
    for turn in range(MOST_TURNS):
        hit = Hit.start(lane, task, basis, turn)
        try:
            hit.await_moment()
            if hit.inject():
                await_end(hit.watcher)
                if hit.had_effect():
                    return hit.outcome()
        finally:
            hit.watcher.stop()
            lane.mend()
            remove(hit.watcher.job)
    raise AssertionError(f"{MOST_TURNS} jobs left the phase before the fault came, or were not hit by it")


def together(lanes: Sequence[Lane], tasks: Sequence[Task], basis: Undisturbed) -> list[tuple[Task, Outcome]]:
    """Makes several tries of a fault that all jobs share, at most one in each lane, by injecting it once.
    A job that ends before the fault comes, or that the fault does not hit, is no try. Where all of them do, others are
    made.

    Raises AssertionError if none is hit."""
    for turn in range(MOST_TURNS):
        if found := _one_outage(lanes, tasks, basis, turn):
            return found
    raise AssertionError(f"{MOST_TURNS} times, every job ended before the fault came, or was not hit by it")


def _one_outage(
    lanes: Sequence[Lane], tasks: Sequence[Task], basis: Undisturbed, turn: int
) -> list[tuple[Task, Outcome]]:
    scene, fault = lanes[0].scene, tasks[0].fault
    scene.use_first_node(not fault.on_second_node)
    hits: list[Hit] = []
    try:
        hits += _staggered(lanes, tasks, basis, turn)
        hits[0].await_moment()
        scene.use_first_node(True)
        for hit in hits:
            hit.injected = None if hit.watcher.is_over else hit.watcher.seconds
        if all(hit.injected is None for hit in hits):
            return []
        fault.inject(lanes[0], hits[0].watcher.job)
        for hit in hits:
            await_end(hit.watcher)
    finally:
        scene.mend()
        for hit in hits:
            hit.watcher.stop()
            remove(hit.watcher.job)
    return [(hit.task, hit.outcome()) for hit in hits if hit.injected is not None and hit.had_effect()]


def _staggered(lanes: Sequence[Lane], tasks: Sequence[Task], basis: Undisturbed, turn: int) -> Iterator["Hit"]:
    """Starts the jobs so that each will be in its phase at about the same moment. The one with the longest way is the
    first, and each of the others waits until the first one has gone the difference."""
    ordered = sorted(tasks, key=lambda task: task.phase.rank, reverse=True)
    first = Hit.start(lanes[0], ordered[0], basis, turn)
    yield first
    for lane, task in zip(lanes[1:], ordered[1:], strict=False):
        ahead = basis.begins[ordered[0].phase] - basis.begins[task.phase]
        while not first.watcher.is_over and first.way < ahead:
            time.sleep(LOOK_SECONDS)
        yield Hit.start(lane, task, basis, turn)


@dataclass
class Hit:
    """A job under a fault. `injected`: when the fault came, in seconds since the watching began; None: not yet, or only
    after the job's end. `turn`: which job of the try it is, from 0."""

    lane: Lane
    task: Task
    basis: Undisturbed
    watcher: Watcher
    turn: int = 0
    injected: float | None = None

    @classmethod
    def start(cls, lane: Lane, task: Task, basis: Undisturbed, turn: int = 0) -> "Hit":
        again = f"-{turn}" if turn else ""
        job = lane.start(f"{task.fault.name}-{task.seed}{again}", **task.fault.spec)
        return cls(lane, task, basis, Watcher(lane, job), turn)

    @property
    def way(self) -> float:
        """How far the job is: the seconds that a job without a fault needs until there."""
        seen = [(sample.phase, sample.seconds) for sample in self.watcher.samples if sample.phase]
        if not seen:
            return 0.0
        phase = seen[-1][0]
        began = next(seconds for other, seconds in seen if other is phase)
        return self.basis.begins[phase] + min(self.watcher.seconds - began, self.basis.seconds[phase])

    def await_moment(self) -> None:
        """Waits until the job is in the task's phase, and then for a random part of the time that the phase takes. Of a
        try's later jobs, the part is smaller: the phase takes less time than that when few other jobs run."""
        await_phase(self.watcher, self.task.phase)
        most = self.basis.seconds[self.task.phase] / (self.turn + 1)
        time.sleep(Random(f"{self.task.seed}/{self.turn}").uniform(0, most))

    def inject(self) -> bool:
        """Injects the fault. Returns False if the job has ended before, or has left the phases of the fault."""
        if self.watcher.is_over or self._is_late():
            return False
        self.injected = self.watcher.seconds
        try:
            other = self.task.fault.inject(self.lane, self.watcher.job)
        except (AssertionError, OSError):  # the pod, its process or its volume is not there
            over = "the job to have ended or left the phase"
            wait_for(over, lambda: self.watcher.is_over or self._is_late(), timeout=LATE_SECONDS)
            return False
        if not self.task.fault.lasts:
            self.injected = self.watcher.seconds
        if other:
            self.watcher.follow(other)
        return True

    def _is_late(self) -> bool:
        """Whether another pod would be hit. Between two phases, this is said only of a fault with a single one."""
        phase, meant = self.watcher.phase, self.task.fault.phases
        return len(meant) == 1 if phase is None else phase not in meant

    def had_effect(self) -> bool:
        """Whether the fault has ended a pod, if it is one that does. Call it once the job has ended."""
        return had_effect(self.task.fault, self._seen)

    def outcome(self) -> Outcome:
        """What the try shows, once the job has ended."""
        comparable = self.task.fault.same_weights and self.watcher.status.get("state") == "Complete"
        same = weights_of(self.lane, self.watcher.job) == self.basis.weights if comparable else None
        return outcome(self.task, self._seen, same)

    @property
    def _seen(self) -> Seen:
        assert self.injected is not None
        return Seen(self.watcher.samples, self.watcher.journals, self.injected, self.watcher.status)


def weights_of(lane: Lane, job: Job) -> str:
    """Returns the digest of the weights that the job has published."""
    manifest = lane.tenant.s3.get_object(Bucket="results", Key=f"{job.name}/manifest.json")["Body"].read()
    files: list[Object] = json.loads(manifest)["files"]
    return str(next(file["sha256"] for file in files if file["path"].endswith("adapter_model.safetensors")))
