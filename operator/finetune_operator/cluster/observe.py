"""Assembles all input of one decision about a FineTuneJob from the store.

Read live, because no watch shows them: the Events of a child that does not start, the Workload of a child that its
queue suspends, the pods of a child that has failed for no visible reason, the node of a pod that is being deleted, the
bundle and the PersistentVolumeClaims before a pod is created, and a tenant's own ServiceAccount."""

from dataclasses import replace
from datetime import UTC, datetime

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.job import ConditionType
from finetune_api.status.reading import read_status
from finetune_operator.cluster.accounts import GOOD, Accounts, Standing
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.bundles import with_bundle
from finetune_operator.cluster.claims import claims_of
from finetune_operator.cluster.ended import observe_ended
from finetune_operator.cluster.events import pod_event, refusal
from finetune_operator.cluster.live_pods import read_pods
from finetune_operator.cluster.nodes import Nodes
from finetune_operator.cluster.profiles import profile_of
from finetune_operator.cluster.rivals import rivals_of
from finetune_operator.cluster.workloads import Workloads
from finetune_operator.observed.causes.starting import needs_events
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Pod
from finetune_operator.observed.world import EarlierJob, Key, World, parse_spec
from finetune_operator.store.kept import KeptJob, KeptRun, unpacked
from finetune_operator.store.store import Store


def observe(api: Api, store: Store, accounts: Accounts, key: Key, workloads: Workloads | None = None) -> World | None:
    """Return the world of this job; None if the job does not exist, or nothing is decided for it any more.

    `workloads`: Kueue's, if the operator may read them."""
    job = store.job(key)
    if job is None or job.is_settled:
        return None
    world = _bare(job)
    if world.deleting:
        return world
    if world.is_over:
        return observe_ended(api, store, job, world)
    _find_unseen_attempt(api, store, world)
    _find_unseen_preflight(api, store, world)
    world = _with_runs(api, store, workloads, world)
    return world if world.spec is None else _with_surroundings(api, store, accounts, world, world.spec)


def _find_unseen_attempt(api: Api, store: Store, world: World) -> None:
    """Read the Job of the running attempt live, if the store does not know it or shows that it is being deleted. It was
    deleted, or a watch is late.

    A late watch must not lead to a second attempt beside the first. So the pods that a deleted Job has left are read
    too. The Job of a pod that belongs to an attempt after those on record is read likewise."""
    last = max(world.status.attempts or [], key=lambda attempt: attempt.number, default=None)
    if last is not None and last.reason is None and not _job_exists(api, store, world, last.name):
        read_pods(api, store, world, names.LABEL_JOB_UID, world.uid)
    for number in store.remains(world.uid):
        if last is None or number > last.number:
            _job_exists(api, store, world, names.attempt_name(world.name, world.uid, number))


def _find_unseen_preflight(api: Api, store: Store, world: World) -> None:
    """Read the Job of the preflight live, if the status says that it exists and the store does not know it.

    A late watch must not count as an interruption."""
    if world.expects_preflight:
        _job_exists(api, store, world, names.preflight_name(world.name, world.uid, world.preflight_under_way))


def _job_exists(api: Api, store: Store, world: World, name: str) -> bool:
    """Whether this Job exists and is not being deleted. One that the store does not know is read live, and then the
    store knows it."""
    if _is_known(store, world, name):
        return True
    raw = api.get("Job", name, world.namespace)
    if raw is not None:
        store.put("Job", raw, own=True)
    return _is_known(store, world, name)


def _is_known(store: Store, world: World, name: str) -> bool:
    return any(kept.run.name == name for kept, _ in store.runs(world.uid))


def _with_runs(api: Api, store: Store, workloads: Workloads | None, world: World) -> World:
    """Return the world with the child Jobs and their pods."""
    for kept, pods in _own_runs(store, world):
        if _lacks_its_end(world, kept, pods):
            read_pods(api, store, world, names.LABEL_CONTROLLER, kept.uid)
    nodes, runs = Nodes(api), _own_runs(store, world)
    explained = [
        (kept, _explained(api, workloads, world.namespace, kept.uid, kept.run.with_pods(nodes.of(pods))))
        for kept, pods in runs
    ]
    found = {names.preflight_number(run.name): run for kept, run in explained if kept.step == "preflight"}
    number = max(found, default=1)
    return replace(
        world,
        preflight=found.get(number),
        preflight_number=number,
        attempts={kept.attempt: run for kept, run in explained if kept.step == "train"},
        remains={number: tuple(nodes.of(pods)) for number, pods in store.remains(world.uid).items()},
    )


def _own_runs(store: Store, world: World) -> list[tuple[KeptRun, list[Pod]]]:
    """Return the operator's own Jobs. A person may copy one under another name, with its labels and its owner."""
    return [(kept, pods) for kept, pods in store.runs(world.uid) if kept.run.name == _own_name(world, kept)]


def _lacks_its_end(world: World, kept: KeptRun, pods: list[Pod]) -> bool:
    """Whether the Job has failed, and no pod shows why, though the status does not say it yet.

    The pod was deleted, or the watch of pods is later than that of Jobs."""
    if not kept.run.failed or kept.run.failure or any(pod.trainer_ended for pod in pods):
        return False
    records = (*(world.status.attempts or ()), *(world.status.preflights or ()))
    is_done = kept.step == "preflight" and world.status.is_true(ConditionType.VALIDATED)
    return not is_done and all(record.name != kept.run.name or record.reason is None for record in records)


def _own_name(world: World, kept: KeptRun) -> str:
    """Return the name of the operator's own Job for this step."""
    if kept.step == "train":
        return names.attempt_name(world.name, world.uid, kept.attempt)
    return names.preflight_name(world.name, world.uid, names.preflight_number(kept.run.name))


def _with_surroundings(api: Api, store: Store, accounts: Accounts, world: World, spec: FineTuneJobSpec) -> World:
    """Return the world with the profile, the bundle, the ServiceAccount and the other jobs."""
    profile, profile_error = profile_of(store, spec.profile_name)
    account = _account(store, accounts, world, spec)
    # Searched only before the job requests a GPU.
    next_is_gpu = world.status.is_true(ConditionType.VALIDATED) and not world.has_requested_gpu
    known = replace(
        world,
        profile=profile,
        profile_error=profile_error,
        earlier_job=_earlier_job(store, world.namespace, spec),
        service_account_exists=account.exists,
        service_account_may_report=account.may_report,
        role_binding_exists=store.has_binding(world.namespace),
        rivals=rivals_of(store, world.key, world.uid, spec, profile) if next_is_gpu and profile else (),
    )
    known = replace(known, claims=claims_of(api, known, spec))
    # The bundle costs a request, so it is read only where a pod may be created next.
    return with_bundle(api, known) if profile and _may_need_a_pod(world, spec) else known


def _may_need_a_pod(world: World, spec: FineTuneJobSpec) -> bool:
    """Whether a pod may be created next, or a pod that exists cannot start without the bundle.

    A job without a status has made no pod, and most of them have no bundle. If it has one, `apply` finds it."""
    runs = [run for run in (world.preflight, *world.attempts.values()) if run is not None]
    if any(run.lacks(names.child_prefix(world.name, world.uid)) for run in runs):
        return True
    if runs and not world.has_pod_on_record:
        return True  # the write of the status has failed, so the digest of the bundle is not on record either
    if any(run.pod and run.pod.trainer_succeeded for run in world.attempts.values()):
        return False  # the job is about to end. If it does not, `apply` finds the bundle.
    return world.status.state is not None and not spec.suspend and not any(run.is_live for run in runs)


def _bare(job: KeptJob) -> World:
    """Return the world with only the fields that come from the FineTuneJob itself."""
    spec, error = parse_spec(FineTuneJobSpec, unpacked(job.spec)) if job.spec else (None, None)
    status = unpacked(job.status)
    return World(
        namespace=job.key[0],
        name=job.key[1],
        uid=job.uid,
        resource_version=str(job.version),
        generation=job.generation,
        created=job.created,
        deleting=job.deleting,
        queue=job.queue,
        priority_class=job.priority_class,
        raw_status=status,
        status=read_status(status),
        spec=spec,
        spec_error=error,
        authors=dict(job.authors),
        progress=job.progress,
        ended_at=job.ended_at,
        ttl=job.ttl,
        keep=job.keep,
    )


def _earlier_job(store: Store, namespace: str, spec: FineTuneJobSpec) -> EarlierJob | None:
    """Return the job of the same namespace that spec.resumeFrom names."""
    job = store.job((namespace, spec.resume_from.name)) if spec.resume_from else None
    return EarlierJob(job.uid, job.written_output, job.state, store.is_cleaned(job.uid)) if job else None


def _account(store: Store, accounts: Accounts, world: World, spec: FineTuneJobSpec) -> Standing:
    """Return the state of the job's ServiceAccount.

    The operator binds its own one, so only a tenant's is checked, and only before a pod is created."""
    name = spec.compute.service_account_name
    if name is None or name == names.TRAINER_SERVICE_ACCOUNT:
        return Standing(store.has_account(world.namespace), may_report=True)
    is_training = any(run.is_live for run in world.attempts.values())
    return GOOD if is_training else accounts.standing(world.namespace, name)


def _explained(api: Api, workloads: Workloads | None, namespace: str, uid: str, run: Run) -> Run:
    """Return the run, with its Events if it is stuck, or Kueue's word if it waits in a queue.

    A normal run needs no such request."""
    now = datetime.now(UTC)
    if run.suspended:
        return _queued(workloads, namespace, uid, run)
    if run.lacks_pods and run.is_live:
        return replace(run, refusal=refusal(api, namespace, uid, run, now))
    if run.pod is not None and needs_events(run.pod, now):
        return replace(run, pod=replace(run.pod, event=pod_event(api, namespace, run.pod.uid)))
    return run


def _queued(workloads: Workloads | None, namespace: str, uid: str, run: Run) -> Run:
    """Return a suspended run with what Kueue says about it, if the run has a queue and the operator may ask."""
    if workloads is None or run.queue is None or not run.is_live:
        return run
    return replace(run, hold=workloads.hold(namespace, uid, run.queue))
