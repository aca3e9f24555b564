"""Reads all input of one decision about a FineTuneJob, directly from the API server and without a cache."""

from dataclasses import replace
from datetime import UTC, datetime

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.events import pod_event, refusal
from finetune_operator.cluster.profiles import profile_of
from finetune_operator.cluster.rivals import rivals_of
from finetune_operator.observed.pods import Object, Pod
from finetune_operator.observed.starting import is_stuck
from finetune_operator.observed.world import Key, Run, World, parse_spec


def observe(api: Api, key: Key) -> World | None:
    """Return the world of this job; None if the job does not exist."""
    namespace, name = key
    # Read the runs before the job, so that the status includes what a pod wrote before it ended.
    runs = _runs(api, namespace, name)
    job = api.get(names.JOB_KIND, name, namespace)
    if job is None:
        return None
    world = _bare(job)
    if world.deleting or world.is_over or world.spec is None:
        return world
    profile, profile_error = profile_of(api, world.spec)
    account = world.spec.compute.service_account_name or names.TRAINER_SERVICE_ACCOUNT
    # The operator binds its own ServiceAccount. The permissions of another ServiceAccount must be checked.
    is_own = account == names.TRAINER_SERVICE_ACCOUNT
    own = [(step, number, run) for uid, step, number, run in runs if uid == world.uid]
    attempts = {number: run for step, number, run in own if step == "train"}
    # Checked only before the job requests a GPU, because it lists the jobs of the whole cluster.
    next_is_gpu = world.status.is_true(ConditionType.VALIDATED) and not attempts
    return replace(
        world,
        profile=profile,
        profile_error=profile_error,
        service_account_exists=api.get("ServiceAccount", account, namespace) is not None,
        service_account_may_report=is_own or api.may_report(namespace, account),
        role_binding_exists=api.get("RoleBinding", names.TRAINER_SERVICE_ACCOUNT, namespace) is not None,
        bundle_exists=api.get("ConfigMap", names.child_prefix(name, world.uid), namespace) is not None,
        preflight=next((run for step, _, run in own if step == "preflight"), None),
        attempts=attempts,
        rivals=rivals_of(api, world.uid, world.spec, profile) if next_is_gpu and profile else (),
    )


def _bare(job: Object) -> World:
    """Return the world with only the fields that come from the FineTuneJob itself."""
    metadata = job["metadata"]
    spec, error = parse_spec(FineTuneJobSpec, job.get("spec", {}))
    status = job.get("status", {})
    return World(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        generation=metadata["generation"],
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        labels=metadata.get("labels", {}),
        raw_status=status,
        status=FineTuneJobStatus.model_validate(status),
        spec=spec,
        spec_error=error,
    )


def _runs(api: Api, namespace: str, name: str) -> list[tuple[str, str, int, Run]]:
    """Return the child Jobs of all FineTuneJobs of this name, as (owner's uid, step, attempt number or 0, run).

    A Job that is being deleted does not count; its name is free only after the deletion."""
    selector = f"{names.LABEL_JOB_NAME}={name}"
    # Read Jobs before pods, so that a failed Job is never combined with a pod that still runs.
    jobs = [job for job in api.list("Job", namespace, selector) if "deletionTimestamp" not in job["metadata"]]
    pods: dict[str, list[Pod]] = {}
    for pod in api.list("Pod", namespace, selector):
        pods.setdefault(pod["metadata"]["labels"].get("batch.kubernetes.io/job-name", ""), []).append(Pod.parse(pod))
    runs = []
    for job in jobs:
        labels, owner = job["metadata"]["labels"], _controller(job)
        if owner is None or names.LABEL_STEP not in labels:
            continue  # a copy of a child Job, made by a user, with the same labels
        run = _explained(api, namespace, job, Run.parse(job, pods.get(job["metadata"]["name"], [])))
        number = int(labels.get(names.LABEL_ATTEMPT, 0))
        runs.append((owner, labels[names.LABEL_STEP], number, run))
    return runs


def _explained(api: Api, namespace: str, job: Object, run: Run) -> Run:
    """Return the run, with its Events if it is stuck. A normal run needs no such request."""
    now = datetime.now(UTC)
    if run.pod is None and run.is_live and not run.suspended:
        return replace(run, refusal=refusal(api, namespace, job, run, now))
    if run.pod is not None and is_stuck(run.pod, now):
        return replace(run, pod=replace(run.pod, event=pod_event(api, namespace, run.pod.uid)))
    return run


def _controller(job: Object) -> str | None:
    """Return the uid of the controlling owner."""
    owners = job["metadata"].get("ownerReferences", [])
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)
