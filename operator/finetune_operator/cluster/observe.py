"""Assembles all input of one decision about a FineTuneJob from the store.

Read live, because no watch shows them: the Events of a child that does not start, the Workload of a child that its
queue suspends, and a tenant's own ServiceAccount."""

from dataclasses import replace
from datetime import UTC, datetime

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.cluster.accounts import GOOD, Accounts, Standing
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.events import pod_event, refusal
from finetune_operator.cluster.profiles import profile_of
from finetune_operator.cluster.rivals import rivals_of
from finetune_operator.cluster.workloads import Workloads
from finetune_operator.observed.starting import is_stuck
from finetune_operator.observed.world import Key, Run, World, parse_spec
from finetune_operator.store.kept import KeptJob, unpacked
from finetune_operator.store.store import Store


def observe(api: Api, store: Store, accounts: Accounts, key: Key, workloads: Workloads | None = None) -> World | None:
    """Return the world of this job; None if the job does not exist or has ended.

    `workloads`: Kueue's, if the operator may read them."""
    job = store.job(key)
    if job is None or job.has_ended:
        return None
    world = _bare(job)
    if world.deleting or world.spec is None:
        return world
    runs = store.runs(job.uid)
    explained = [
        (kept, _explained(api, workloads, world.namespace, kept.uid, kept.run.with_pods(pods))) for kept, pods in runs
    ]
    attempts = {kept.attempt: run for kept, run in explained if kept.step == "train"}
    profile, profile_error = profile_of(store, world.spec.profile_name)
    account = _account(store, accounts, world.namespace, world.spec) if not attempts else GOOD
    # Searched only before the job requests a GPU.
    next_is_gpu = world.status.is_true(ConditionType.VALIDATED) and not attempts
    return replace(
        world,
        profile=profile,
        profile_error=profile_error,
        service_account_exists=account.exists,
        service_account_may_report=account.may_report,
        role_binding_exists=store.has_binding(world.namespace),
        preflight=next((run for kept, run in explained if kept.step == "preflight"), None),
        attempts=attempts,
        rivals=rivals_of(store, world.uid, world.spec, profile) if next_is_gpu and profile else (),
    )


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
        status=FineTuneJobStatus.model_validate(status),
        spec=spec,
        spec_error=error,
    )


def _account(store: Store, accounts: Accounts, namespace: str, spec: FineTuneJobSpec) -> Standing:
    """Return the state of the job's ServiceAccount. The operator binds its own one, so only a tenant's is checked."""
    name = spec.compute.service_account_name
    if name is None or name == names.TRAINER_SERVICE_ACCOUNT:
        return Standing(store.has_account(namespace), may_report=True)
    return accounts.standing(namespace, name)


def _explained(api: Api, workloads: Workloads | None, namespace: str, uid: str, run: Run) -> Run:
    """Return the run, with its Events if it is stuck, or Kueue's word if it waits in a queue.

    A normal run needs no such request."""
    now = datetime.now(UTC)
    if run.suspended:
        return _queued(workloads, namespace, uid, run)
    if run.pod is None and run.is_live:
        return replace(run, refusal=refusal(api, namespace, uid, run, now))
    if run.pod is not None and is_stuck(run.pod, now):
        return replace(run, pod=replace(run.pod, event=pod_event(api, namespace, run.pod.uid)))
    return run


def _queued(workloads: Workloads | None, namespace: str, uid: str, run: Run) -> Run:
    """Return a suspended run with what Kueue says about it, if the run has a queue and the operator may ask."""
    if workloads is None or run.queue is None or not run.is_live:
        return run
    return replace(run, hold=workloads.hold(namespace, uid, run.queue))
