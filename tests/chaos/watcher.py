"""Watches one job, from its creation to its end, also while the API server is the one that is broken."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import requests

from finetune_api import names
from tests.chaos.figures.judge import Done, Journal, Sample
from tests.chaos.phases import Phase, phase_of
from tests.chaos.pods import journal_of, log_of, pod_at_work
from tests.chaos.scene import Lane
from tests.integration.jobs import Job
from tests.integration.kube import PODS, Object, RefusedError
from tests.integration.waiting import wait_for

END_SECONDS = 600.0
"""How long a job may stand still. Then it is taken for one that never ends."""
GONE_SECONDS = 150.0
PHASE_SECONDS = 400.0
"""How long a job may take to come into a phase, beside others on a busy machine."""
_PAUSE_SECONDS = 0.5
_STEPS = {"Validating": "preflight", "Running": "train"}
"""The step of the pod at work, by the state of the job."""


@dataclass
class Watcher:
    """Looks at a job twice a second from its creation to its end, or to `stop`."""

    lane: Lane
    job: Job
    samples: list[Sample] = field(default_factory=list)
    status: Object = field(default_factory=dict)
    _journals: dict[Path, Journal] = field(default_factory=dict)
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
        """Since the job was last seen in another phase or pod than before, or since its last step."""
        places = [(sample.phase, sample.pod) for sample in self.samples]
        changed = next((i for i in range(len(places) - 1, 0, -1) if places[i] != places[i - 1]), 0)
        steps = [journal[-1].seconds for journal in self.journals if journal]
        return self.seconds - max([self.samples[changed].seconds if self.samples else 0.0, *steps])

    @property
    def is_over(self) -> bool:
        return self.status.get("state") in ("Complete", "Failed")

    @property
    def journals(self) -> Sequence[Journal]:
        """The steps of each pod that has trained, in the order of the pods."""
        return list(self._journals.values())

    def follow(self, job: Job) -> None:
        """Looks at another job from now on, and forgets the first one."""
        self.job = job
        self.samples, self.status, self._journals = [], {}, {}

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_PAUSE_SECONDS):
            if self.is_over:
                continue
            self._read_journals()  # of pods that end, too: their volumes go soon after them
            # The API server may be the one that is broken, and the job may be made again.
            with suppress(requests.RequestException, RefusedError, ValueError):
                self._look()

    def _look(self) -> None:
        status = self.job.status()
        step = _STEPS.get(status.get("state", ""))
        pod = pod_at_work(self.job, step) if step else None
        phase = phase_of(status, log_of(self.lane.scene, pod) if pod else "")
        if pod and phase is not Phase.PREFLIGHT:
            self._journals.setdefault(journal_of(self.lane.scene, pod), [])
        self.samples.append(Sample(self.seconds, phase, str(pod["metadata"]["uid"]) if pod else ""))
        self.status = status

    def _read_journals(self) -> None:
        for path in list(self._journals):
            with suppress(OSError):
                self._journals[path] = read_journal(path.read_text(), self._began)


def read_journal(text: str, began: float) -> Journal:
    """Returns the steps of a pod. `began`: time.monotonic() from which the seconds count. A line that is being written
    is left out."""
    lines = text.split("\n")[:-1]
    return [Done(float(at) - began, int(step)) for at, step in map(str.split, lines)]


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
