"""One try: a job is created, a fault is injected at a random moment of a phase, and the job is watched to its end.
A fault that all jobs share is injected once under several jobs, each of which is a try."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.figures.judge import Outcome, outcome, seconds_in
from tests.chaos.phases import Phase
from tests.chaos.scene import Lane
from tests.chaos.table import Task
from tests.chaos.watcher import Watcher, await_end, await_phase, remove
from tests.integration.jobs import Job
from tests.integration.kube import Object


@dataclass(frozen=True)
class Undisturbed:
    """What a job without a fault shows. `seconds`: in each phase. `weights`: digest of its adapter."""

    seconds: dict[str, float]
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
    mean = {
        str(phase): sum(seconds_in(phase, watcher.samples) for watcher in watchers) / len(watchers) for phase in Phase
    }
    for watcher in watchers:
        remove(watcher.job)
    return Undisturbed({phase: round(seconds, 2) for phase, seconds in mean.items()}, digests.pop())


def alone(lane: Lane, task: Task, basis: Undisturbed) -> Outcome:
    """Makes one try of a fault that hits one job."""
    hit = Hit.start(lane, task, basis)
    try:
        hit.await_moment()
        hit.inject()
        await_end(hit.watcher)
    finally:
        hit.watcher.stop()
        lane.mend()
        remove(hit.watcher.job)
    return hit.outcome()


def together(lanes: Sequence[Lane], tasks: Sequence[Task], basis: Undisturbed) -> list[tuple[Task, Outcome]]:
    """Makes several tries of a fault that all jobs share, at most one in each lane, by injecting it once."""
    scene, fault = lanes[0].scene, tasks[0].fault
    scene.use_first_node(not fault.on_second_node)
    hits: list[Hit] = []
    try:
        hits += _staggered(lanes, tasks, basis)
        hits[0].await_moment()
        scene.use_first_node(True)
        for hit in hits:
            hit.injected = hit.watcher.seconds
        fault.inject(lanes[0], hits[0].watcher.job)
        for hit in hits:
            await_end(hit.watcher)
    finally:
        scene.mend()
        for hit in hits:
            hit.watcher.stop()
            remove(hit.watcher.job)
    return [(hit.task, hit.outcome()) for hit in hits]


def _staggered(lanes: Sequence[Lane], tasks: Sequence[Task], basis: Undisturbed) -> Iterator["Hit"]:
    """Starts the jobs so that each will be in its phase at about the same moment. The one with the longest way is the
    first."""
    ordered = sorted(tasks, key=lambda task: task.phase.rank, reverse=True)
    longest, began = _way(ordered[0], basis), time.monotonic()
    for lane, task in zip(lanes, ordered, strict=False):
        time.sleep(max(0.0, began + longest - _way(task, basis) - time.monotonic()))
        yield Hit.start(lane, task, basis)


def _way(task: Task, basis: Undisturbed) -> float:
    """Returns how many seconds of work come before the task's phase."""
    return sum(seconds for phase, seconds in basis.seconds.items() if Phase(phase).rank < task.phase.rank)


@dataclass
class Hit:
    """A job under a fault. `injected`: when the fault came, in seconds since the watching began."""

    lane: Lane
    task: Task
    basis: Undisturbed
    watcher: Watcher
    injected: float = 0.0

    @classmethod
    def start(cls, lane: Lane, task: Task, basis: Undisturbed) -> "Hit":
        job = lane.start(f"{task.fault.name}-{task.seed}", **task.fault.spec)
        return cls(lane, task, basis, Watcher(lane, job))

    def await_moment(self) -> None:
        """Waits until the job is in the task's phase, and then for a random part of the time that the phase takes."""
        await_phase(self.watcher, self.task.phase)
        time.sleep(Random(self.task.seed).uniform(0, self.basis.seconds[self.task.phase]))

    def inject(self) -> None:
        self.injected = self.watcher.seconds
        if other := self.task.fault.inject(self.lane, self.watcher.job):
            self.watcher.follow(other)

    def outcome(self) -> Outcome:
        """What the try shows, once the job has ended."""
        watcher, fault = self.watcher, self.task.fault
        comparable = fault.same_weights and watcher.status.get("state") == "Complete"
        same = weights_of(self.lane, watcher.job) == self.basis.weights if comparable else None
        return outcome(self.task, watcher.samples, self.injected, watcher.status, same)


def weights_of(lane: Lane, job: Job) -> str:
    """Returns the digest of the weights that the job has published."""
    manifest = lane.tenant.s3.get_object(Bucket="results", Key=f"{job.name}/manifest.json")["Body"].read()
    files: list[Object] = json.loads(manifest)["files"]
    return str(next(file["sha256"] for file in files if file["path"].endswith("adapter_model.safetensors")))
