"""Watches one job, from its creation to its end, also while the API server is the one that is broken."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread

import requests

from finetune_api import names
from tests.chaos.figures.judge import Sample
from tests.chaos.phases import Phase, phase_of
from tests.chaos.pods import log_of, pod_at_work
from tests.chaos.scene import Lane
from tests.integration.jobs import Job
from tests.integration.kube import PODS, Object, RefusedError
from tests.integration.waiting import wait_for

END_SECONDS = 600.0
"""How long a job may stand still. Then it is taken for one that never ends."""
GONE_SECONDS = 150.0
PHASE_SECONDS = 180.0
"""How long a job may take to come into a phase."""
_PAUSE_SECONDS = 0.2


@dataclass
class Watcher:
    """Looks at a job five times a second from its creation to its end, or to `stop`."""

    lane: Lane
    job: Job
    samples: list[Sample] = field(default_factory=list)
    status: Object = field(default_factory=dict)
    _stopped: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Since the watching began."""
        return time.monotonic() - self._began

    @property
    def phase(self) -> Phase | None:
        return self.samples[-1].phase if self.samples else None

    @property
    def seconds_idle(self) -> float:
        """Since the job was last seen in another phase, attempt or step than before."""
        places = [(sample.phase, sample.attempt, sample.step) for sample in self.samples]
        changed = next((i for i in range(len(places) - 1, 0, -1) if places[i] != places[i - 1]), 0)
        return self.seconds - (self.samples[changed].seconds if self.samples else 0.0)

    @property
    def is_over(self) -> bool:
        return self.status.get("state") in ("Complete", "Failed")

    def follow(self, job: Job) -> None:
        """Looks at another job from now on, and forgets the first one."""
        self.job = job
        self.samples, self.status = [], {}

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_PAUSE_SECONDS):
            if self.is_over:
                continue
            # The API server may be the one that is broken, and the job may be made again.
            with suppress(requests.RequestException, RefusedError, ValueError):
                self._look()

    def _look(self) -> None:
        status = self.job.status()
        pod = pod_at_work(self.job) if status.get("state") == "Running" else None
        phase = phase_of(status, log_of(self.lane.scene, pod) if pod else "")
        training = status.get("training", {})
        step, attempt = training.get("step", 0), training.get("attempt", 0)
        self.samples.append(Sample(self.seconds, phase, attempt, step, training.get("resumedFromStep", 0)))
        self.status = status


def await_phase(watcher: Watcher, phase: Phase) -> None:
    """Waits until the job is in this phase, or has passed it between two looks."""

    def reached() -> bool:
        return watcher.is_over or (watcher.phase is not None and watcher.phase.rank >= phase.rank)

    wait_for(f"{watcher.job.name} to be in the phase {phase}", reached, timeout=PHASE_SECONDS)


def await_end(watcher: Watcher) -> None:
    """Waits until the job has ended. A job that never ends is a result: its state is neither Complete nor Failed."""
    while not watcher.is_over and watcher.seconds_idle < END_SECONDS:
        time.sleep(_PAUSE_SECONDS)


def remove(job: Job) -> None:
    """Deletes the job and waits until its pods are gone, so that they do not hold a GPU of the next try."""
    job.kube.delete(job.path)
    with suppress(AssertionError):
        wait_for(
            "its pods to go",
            lambda: job.kube.list(PODS.format(job.namespace), labelSelector=f"{names.LABEL_JOB_NAME}={job.name}"),
            lambda pods: not pods,
            GONE_SECONDS,
        )
