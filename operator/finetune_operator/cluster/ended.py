"""Assembles the input of a decision about a FineTuneJob that has ended.

The store keeps neither spec nor status of such a job. They are read live when its checkpoints are due: once to create
the cleanup, and once to write how it ended."""

from dataclasses import replace
from datetime import UTC, datetime

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.reading import read_status
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.bundles import with_bundle
from finetune_operator.cluster.claims import claim_of_output
from finetune_operator.cluster.profiles import profile_of
from finetune_operator.decisions import cleanups
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.world import World, parse_spec
from finetune_operator.store.kept import KeptJob
from finetune_operator.store.store import JOB, Store

MOST_CLEANUPS, MOST_IN_NAMESPACE = 10, 2
"""How many cleanups run at the same time. The second limit leaves room for other tenants while the pods of one tenant
do not start."""


def observe_ended(api: Api, store: Store, job: KeptJob, bare: World) -> World | None:
    """Return the world of a job that has ended, with the Jobs that exist; None if the job was deleted.

    `bare`: with the fields that come from the store's `job`."""
    runs = store.runs(job.uid)
    own = names.cleanup_name(bare.name, bare.uid)  # a person may copy it under another name
    cleanup = next((run.run.with_pods(pods) for run, pods in runs if run.run.name == own), None)
    others = [pod for run, pods in runs if run.step != names.CLEANUP for pod in pods]
    left = [pod for pods in store.remains(job.uid).values() for pod in pods]
    world = replace(
        bare,
        children=tuple(run.run.name for run, _ in runs),
        had_several_nodes=job.has_several_nodes,
        cleanup=cleanup,
        trainers=(*others, *left),
    )
    if job.keep is None or job.ended_at is None:
        return world
    now = datetime.now(UTC)
    if cleanup is not None:  # its end counts also if somebody has raised keepCheckpointsSeconds meanwhile
        has_news = cleanups.end_of(cleanup, now) is not None or _lacks_a_claim(cleanup)
        return _with_live_job(api, store, job, world) if has_news else world
    if now < job.ended_at + job.keep:
        return world
    if store.profile(job.profile) is None or not store.take_turn(job, MOST_CLEANUPS, MOST_IN_NAMESPACE):
        return world
    return _with_live_job(api, store, job, replace(world, cleanup_has_turn=True))


def _with_live_job(api: Api, store: Store, job: KeptJob, world: World) -> World | None:
    raw = api.get(JOB, world.name, world.namespace)
    if raw is None or raw["metadata"]["uid"] != job.uid:
        return None
    spec, error = parse_spec(FineTuneJobSpec, raw["spec"])
    profile, profile_error = profile_of(store, job.profile)
    found = replace(
        world,
        resource_version=raw["metadata"]["resourceVersion"],
        generation=raw["metadata"]["generation"],
        deleting="deletionTimestamp" in raw["metadata"],
        raw_status=raw["status"],
        status=read_status(raw["status"]),
        spec=spec,
        spec_error=error,
        profile=profile,
        profile_error=profile_error,
        service_account_exists=store.has_account(world.namespace),
        role_binding_exists=store.has_binding(world.namespace),
    )
    if world.cleanup is not None and cleanups.end_of(world.cleanup, datetime.now(UTC)) is not None:
        return found
    found = replace(found, claims=claim_of_output(api, found, spec)) if spec else found
    return with_bundle(api, found) if world.cleanup is None else found


def _lacks_a_claim(cleanup: Run) -> bool:
    """Whether the scheduler says that the pod cannot run because of a claim, for example because it was deleted."""
    scheduled = cleanup.pod.conditions.get("PodScheduled") if cleanup.pod else None
    return scheduled is not None and scheduled.status == "False" and "persistentvolumeclaim" in scheduled.message
