"""The newest known version of each watched object. Safe to use from several threads."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from finetune_api import names
from finetune_operator.observed.facts.pods import Object, Pod
from finetune_operator.observed.world import Key
from finetune_operator.store.kept import KeptJob, KeptName, KeptPod, KeptProfile, KeptRun
from finetune_operator.store.outputs import Outputs
from finetune_operator.store.own_writes import OwnWrites
from finetune_operator.store.resumption import Resumers
from finetune_operator.store.table import Table
from finetune_operator.store.turns import Turns

logger = logging.getLogger(__name__)

JOB, RUN, POD, PROFILE, ACCOUNT, BINDING = KINDS = (
    names.JOB_KIND,
    "Job",
    "Pod",
    names.PROFILE_KIND,
    "ServiceAccount",
    "RoleBinding",
)
CLUSTER_SCOPED = (PROFILE,)


class Store:
    """All watched objects. `changed` receives the key of each FineTuneJob for which the next decision may differ."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._lock = RLock()
        self._jobs: Table[KeptJob] = Table(lambda job: job.key)
        self._runs: Table[KeptRun] = Table(lambda run: run.owner)
        self._pods: Table[KeptPod] = Table(lambda pod: pod.owner)
        self._profiles: Table[KeptProfile] = Table(lambda profile: profile.name)
        self._accounts: Table[KeptName] = Table(lambda account: account.namespace)
        self._bindings: Table[KeptName] = Table(lambda binding: binding.namespace)
        tables = (self._jobs, self._runs, self._pods, self._profiles, self._accounts, self._bindings)
        self._tables: dict[str, Table[Any]] = dict(zip(KINDS, tables, strict=True))
        self._outputs, self._resumers = Outputs(), Resumers()
        self._cleanups: set[str] = set()
        """uids of the cleanups that can start or hold a pod. Those that were deleted meanwhile may be among them."""
        self._turns, self._own_writes = Turns(), OwnWrites()

    # Feeding

    def put(self, kind: str, raw: Object, own: bool = False) -> None:
        """Keep a version of an object.

        `own`: it is the answer to a write of this operator. It counts at once and causes no further decision; a watch
        is expected to show it."""
        uid, version = raw["metadata"]["uid"], int(raw["metadata"]["resourceVersion"])
        kept = _parsed(kind, raw)
        with self._lock:
            keys = self._put(kind, kept) if kept is not None else self._ignore(kind, uid, version)
            if own and kept is not None and keys is not None:  # no watch shows one that is ignored as a write
                self._own_writes.written(uid, version)
            elif not own:
                self._own_writes.shown(uid, version)
        if not own:
            self._tell(keys or ())

    def remove(self, kind: str, uid: str) -> None:
        """Forget an object that was deleted."""
        with self._lock:
            self._own_writes.forget(uid)
            keys = self._remove(kind, uid)
        self._tell(keys)

    def forget_run(self, uid: str, name: str) -> None:
        """Forget the child Job `name` of the FineTuneJob `uid`, which this operator has deleted."""
        with self._lock:
            for run in self._runs_of(uid):
                if run.run.name == name:
                    self._runs.remove(run.uid)
                    self._own_writes.forget(run.uid)

    # Reading

    def job(self, key: Key) -> KeptJob | None:
        """Return the FineTuneJob. Of a deleted one and its successor of the same name, return the successor."""
        with self._lock:
            return max(self._jobs.of(key), key=lambda job: job.version, default=None)

    def runs(self, uid: str) -> list[tuple[KeptRun, list[Pod]]]:
        """Return the child Jobs of the FineTuneJob `uid` that are not being deleted, each with its pods."""
        with self._lock:
            runs = [run for run in self._runs_of(uid) if not run.deleting]
            pods = self._pods_of(uid)
            return [(run, [kept.pod for kept in pods if kept.job == run.uid]) for run in runs]

    def remains(self, uid: str) -> dict[int, tuple[Pod, ...]]:
        """Return the pods of the FineTuneJob `uid` whose Job is gone or is being deleted, by attempt."""
        with self._lock:
            jobs = {run.uid for run in self._runs_of(uid) if not run.deleting}
            left: dict[int, tuple[Pod, ...]] = {}
            for kept in self._pods_of(uid):
                if kept.job not in jobs and kept.attempt:
                    left[kept.attempt] = (*left.get(kept.attempt, ()), kept.pod)
            return left

    def profile(self, name: str) -> KeptProfile | None:
        with self._lock:
            return max(self._profiles.of(name), key=lambda profile: profile.version, default=None)

    def has_account(self, namespace: str) -> bool:
        """Whether the namespace has the trainer's ServiceAccount."""
        with self._lock:
            return bool(self._accounts.of(namespace))

    def has_binding(self, namespace: str) -> bool:
        """Whether the namespace has the trainer's RoleBinding."""
        with self._lock:
            return bool(self._bindings.of(namespace))

    def writers(self, output: str) -> list[tuple[KeptJob, bool]]:
        """Return the jobs that can write to `output`, inside of it or around it, and whether each has an attempt."""
        with self._lock:
            jobs = [job for uid in self._outputs.overlapping(output) if (job := self._jobs.get(uid))]
            return [(job, job.has_attempts or self._trains(job.uid)) for job in jobs]

    def take_turn(self, job: KeptJob, most: int, most_in_namespace: int) -> bool:
        """Return whether a cleanup of this job may be created now. There are at most `most` that can start or hold a
        pod, and `most_in_namespace` in each namespace. A turn that is not used is taken back, see `Turns`.

        A job has no turn while another job that resumes from it needs its checkpoints."""
        now = datetime.now(UTC)
        with self._lock:
            resumers = [resumer for uid in self._resumers.of(job.key) if (resumer := self._jobs.get(uid))]
            if any(resumer.needs_earlier_checkpoints(now) for resumer in resumers):
                return False
            busy = self._busy_cleanups() - {job.uid}
            beside = Counter(owner.key[0] for uid in busy if (owner := self._jobs.get(uid)) is not None)
            # Tenants can create Jobs that look like cleanups, so a namespace never counts for more than its share.
            in_all = sum(min(count, most_in_namespace) for count in beside.values())
            if in_all >= most or beside[job.key[0]] >= most_in_namespace:
                return False
            self._turns.take(job.uid)
            return True

    def is_cleaned(self, uid: str) -> bool:
        """Whether the checkpoints of the FineTuneJob `uid` are being deleted, or may be at any moment."""
        with self._lock:
            cleanups = [run for run in self._runs_of(uid) if run.step == names.CLEANUP]
            return self._turns.has(uid) or any(not (run.run.succeeded or run.run.failed) for run in cleanups)

    def unsettled(self) -> list[Key]:
        """Return the keys of the FineTuneJobs for which something is still decided."""
        with self._lock:
            return [job.key for job in self._jobs if not job.is_settled]

    def version(self, kind: str, uid: str) -> int | None:
        """Return the known version of the object; None if it is not known."""
        with self._lock:
            kept = self._tables[kind].get(uid)
            return kept.version if kept else None

    def has(self, kind: str, uid: str) -> bool:
        """Whether the object is known, also as deleted or as ignored."""
        with self._lock:
            return self._tables[kind].has(uid)

    def uids(self, kind: str) -> dict[str, int]:
        """Return the versions of all known objects of a kind, by uid."""
        with self._lock:
            return {kept.uid: kept.version for kept in self._tables[kind]}

    def sizes(self) -> dict[str, int]:
        """Return the number of known objects of each kind."""
        with self._lock:
            return {kind: len(self._tables[kind]) for kind in KINDS}

    def states(self) -> Counter[str]:
        """Return the number of FineTuneJobs in each state; "" for those that have none yet."""
        with self._lock:
            return Counter(job.state for job in self._jobs)

    def longest_unseen(self) -> float:
        """Return for how many seconds the oldest own write has not been shown by its watch; 0 if there is none."""
        with self._lock:
            return self._own_writes.longest()

    def forget_unseen(self) -> None:
        """Wait no longer for own writes: the watches start anew, and list everything."""
        with self._lock:
            self._own_writes.forget_all()

    # Inside, with the lock held

    def _runs_of(self, uid: str) -> list[KeptRun]:
        job = self._jobs.get(uid)
        return self._runs.of((job.key[0], uid)) if job else []

    def _pods_of(self, uid: str) -> list[KeptPod]:
        job = self._jobs.get(uid)
        return self._pods.of((job.key[0], uid)) if job else []

    def _busy_cleanups(self) -> set[str]:
        """Return the uids of the jobs that have a cleanup or may create one. Forgets turns that were not used."""
        runs = [run for uid in self._cleanups if (run := self._runs.get(uid)) is not None]
        self._cleanups = {run.uid for run in runs}
        return {*self._turns.uids(), *(owner.uid for run in runs if (owner := self._owner(run)))}

    def _trains(self, uid: str) -> bool:
        return any(run.step == "train" for run in self._runs_of(uid))

    def _put(self, kind: str, kept: Any) -> Iterable[Key] | None:
        """Keep the object. Return the keys for which the decision may differ; None if nothing new was kept."""
        table = self._tables[kind]
        before = table.get(kept.uid)
        if not table.put(kept):
            return None
        if kind == JOB:
            self._index(before, kept)
        if kind == RUN and kept.step == names.CLEANUP:
            if owner := self._owner(kept):
                self._turns.use(owner.uid)
            (self._cleanups.add if kept.is_cleaning else self._cleanups.discard)(kept.uid)
        return self._concerned(kind, kept) if before != kept and kind not in (ACCOUNT, BINDING) else ()

    def _index(self, before: KeptJob | None, job: KeptJob | None) -> None:
        self._resumers.replace(before, job)
        if before is not None and before.may_write:
            self._outputs.remove(before.uid, before.output)
        if job is not None and job.may_write:
            self._outputs.add(job.uid, job.output)

    def _ignore(self, kind: str, uid: str, version: int) -> Iterable[Key]:
        return self._without(kind, self._tables[kind].ignore(uid, version))

    def _remove(self, kind: str, uid: str) -> Iterable[Key]:
        return self._without(kind, self._tables[kind].remove(uid))

    def _without(self, kind: str, gone: Any) -> Iterable[Key]:
        """Return the keys of the jobs that an object concerned that is not kept any more."""
        if gone is None:
            return ()
        if kind == JOB:
            self._index(gone, None)
            return ()
        return self._concerned(kind, gone)

    def _concerned(self, kind: str, kept: Any) -> list[Key]:
        """Return the keys of the FineTuneJobs whose decision depends on this object: unfinished ones, and the one that
        a cleanup works for."""
        if kind == JOB:
            return [] if kept.is_settled else [kept.key]
        if kind in (RUN, POD):
            owner, run = self._owner(kept), kept if kind == RUN else self._runs.get(kept.job)
            cleans = run is not None and run.step == names.CLEANUP  # its pod tells its end, if a sidecar runs on
            if owner is None or (owner.is_settled if cleans else owner.has_ended):
                return []
            return [owner.key]
        if kind == PROFILE:
            return [job.key for job in self._jobs if job.profile == kept.name and not job.has_ended]
        return [job.key for job in self._jobs if job.key[0] == kept.namespace and not job.has_ended]

    def _owner(self, child: KeptRun | KeptPod) -> KeptJob | None:
        """Return the FineTuneJob that a Job or Pod of its namespace belongs to."""
        namespace, uid = child.owner
        job = self._jobs.get(uid)
        return job if job and job.key[0] == namespace else None

    def _tell(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._changed(key)


def _parsed(kind: str, raw: Object) -> object | None:
    """Return the kept part of an object; None if nothing of it is kept.

    Tenants can create objects with the operator's labels, so an object that cannot be read must not stop anything."""
    try:
        return _PARSE[kind](raw)
    except Exception as error:
        metadata = raw["metadata"]
        name = f"{metadata.get('namespace', '')}/{metadata['name']}".lstrip("/")
        logger.warning("%s %s is ignored, because it cannot be read: %r", kind, name, error)
        return None


_PARSE: dict[str, Callable[[Object], object | None]] = {
    JOB: KeptJob.parse,
    RUN: KeptRun.parse,
    POD: KeptPod.parse,
    PROFILE: KeptProfile.parse,
    ACCOUNT: KeptName.parse,
    BINDING: KeptName.parse,
}
