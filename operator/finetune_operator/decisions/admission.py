"""Checks before the operator creates pods.

Before the first pod: the spec is readable, the profile exists and lists the buckets, the claims and the GPU type, the
PersistentVolumeClaims exist, the job does not write to a folder that it reads, the job of spec.resumeFrom has failed,
and the ServiceAccount exists and may write the status. Before the job requests a GPU: it fits a GPU type, and no other
job writes to the same output."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api import claims, hub, names
from finetune_api.bundle import bucket_of, no_gpu_type, storage_of, unknown_bucket, uris_of
from finetune_api.conflicts import conflicts, normal
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import Claims, FineTuneProfileSpec, Hub, Storage
from finetune_api.status.job import ConditionType, State
from finetune_operator.decisions import gpu_choice
from finetune_operator.decisions.objects import bundles
from finetune_operator.decisions.objects import claims as claims_of_job
from finetune_operator.decisions.objects.allowed import not_allowed
from finetune_operator.observed.world import World

GRACE = timedelta(seconds=30)
"""How long a job waits for objects that it names. A pipeline may apply a job before its profile."""
LOOK_AGAIN = timedelta(seconds=5)


@dataclass(frozen=True)
class Obstacle:
    """Why the job cannot start. `final`: the job fails now, and waiting longer does not help.

    `remedy`: what to do, if that is more exact than the remedy of SpecInvalid."""

    finding: str
    final: bool
    remedy: str | None = None

    @property
    def while_waiting(self) -> str:
        """The message of a job that waits. It need not be created again."""
        return f"{self.finding} {self.remedy or ''}".rstrip()


def obstacle(world: World, now: datetime) -> Obstacle | None:
    """Return the first check that fails; None if the job can start."""
    if world.spec is None:
        # The API server has accepted it, so another version of the operator can read it.
        remedy = "Update the operator, or create the job with fields that this version knows."
        return Obstacle(_unreadable(world), final=False, remedy=remedy)
    # A job that has begun found all objects once. Missing objects are expected to come back, so the job waits.
    begun = _has_begun(world)
    # A suspended job may be created before the objects that it names.
    late = now - _awaited_since(world, now) >= GRACE and not begun and not world.spec.suspend
    if world.profile_error:
        unread = f"This version of the operator cannot read FineTuneProfile {world.spec.profile_name}"
        return Obstacle(f"{unread}: {world.profile_error}", final=False)
    if world.profile is None:
        return Obstacle(
            f'spec.profileName: FineTuneProfile "{world.spec.profile_name}" does not exist.',
            late,
            "List the profiles with kubectl get finetuneprofiles, and set spec.profileName to one of them.",
        )
    if gpus := _no_gpu_type(world, world.spec, world.profile, begun):
        return gpus
    if refused := not_allowed(world.spec, world.profile):
        return Obstacle(refused[0], final=not begun, remedy=refused[1])
    if world.bundle_is_foreign:
        return _foreign_bundle(world, world.bundle_error or "")
    if world.bundle_error:
        return _unreadable_bundle(world, world.bundle_error)
    if not _keeps_its_bundle(world) and (outside := _outside(world, world.spec, world.profile)):
        return replace(outside, final=not begun)
    if not begun and (misused := claims_of_job.misused_cache(world.spec, world.profile)):
        return Obstacle(misused.finding, final=True, remedy=misused.remedy)
    earlier = world.earlier_job.output if world.earlier_job else None
    if problem := claims_of_job.problem(world.spec, world.namespace, world.claims, earlier):
        final = (problem.is_final and not begun) or (problem.is_missing and late)
        return Obstacle(problem.finding, final=final, remedy=problem.remedy)
    if not begun and (misplaced := _misplaced_cache(world.spec, world.profile)):
        return misplaced
    if not begun and (conflict := next(conflicts(world.spec), None)):
        return Obstacle(f"{conflict.field}: {conflict.finding}", final=True, remedy=conflict.remedy)
    if not begun and (missing := _no_checkpoints(world, world.spec, world.profile, late)):
        return missing
    return _unfit_account(world, world.spec, late)


def _has_begun(world: World) -> bool:
    """Whether a pod of the job was created. The pod of one that was suspended during its preflight is gone, but the
    digest of its bundle is on record."""
    known = world.status.is_true(ConditionType.VALIDATED) or world.status.bundle_digest is not None
    return known or world.preflight is not None or world.has_requested_gpu


def _awaited_since(world: World, now: datetime) -> datetime:
    """Return since when the job waits for the objects that it names: since it was created or last resumed."""
    suspended = world.status.condition(ConditionType.SUSPENDED)
    if suspended is None:
        return world.created
    # The status still says that it is suspended: it was resumed just now.
    return now if suspended.status == "True" else max(world.created, suspended.last_transition_time)


def told_of_unread(world: World) -> str:
    """Return what to tell about an attempt of a job that this version cannot read, as the end of a message; "" of
    another one. Its pod has its own bundle, so it goes on."""
    if world.spec is not None:
        return ""
    return (
        f" {_unreadable(world)} The attempt goes on, but spec.suspend and spec.runPolicy have no effect. Update the "
        "operator, or change this field back."
    )


def _unreadable(world: World) -> str:
    found = world.spec_error or "The operator cannot read spec."
    return f"This version of the operator cannot read the job: {found}"


def _unfit_account(world: World, spec: FineTuneJobSpec, late: bool) -> Obstacle | None:
    """Return why the pods cannot run under the ServiceAccount that the job names; None if they can."""
    account = spec.compute.service_account_name
    if account not in (None, names.TRAINER_SERVICE_ACCOUNT) and not world.service_account_exists:
        return Obstacle(
            f'spec.compute.serviceAccountName: ServiceAccount "{account}" does not exist in namespace '
            f"{world.namespace}.",
            late,
            "Create the ServiceAccount, or correct the name.",
        )
    if not world.service_account_may_report:
        return Obstacle(
            f"spec.compute.serviceAccountName: ServiceAccount {account} has no permission to write the status of the "
            "job.",
            late,
            f"Run this command: kubectl create rolebinding {account}-reports --namespace {world.namespace} "
            f"--clusterrole {names.TRAINER_SERVICE_ACCOUNT} --serviceaccount {world.namespace}:{account}",
        )
    return None


def _no_checkpoints(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, late: bool) -> Obstacle | None:
    """Return why the job of spec.resumeFrom has no checkpoint that this job can read; None if it can have one."""
    if spec.resume_from is None:
        return None
    field, name, earlier = "spec.resumeFrom.name", spec.resume_from.name, world.earlier_job
    if name == world.name:
        return Obstacle(
            f"{field}: a job cannot resume from itself.",
            final=True,
            remedy="A job whose attempt fails continues from its own checkpoints without this field. Remove the field, "
            "or name another job.",
        )
    if earlier is None:
        return Obstacle(
            f'{field}: FineTuneJob "{name}" does not exist in namespace {world.namespace}.',
            late,
            "Only a job of the same namespace can be named. List the jobs with "
            f"kubectl get finetunejobs --namespace {world.namespace}, and name one that failed.",
        )
    if earlier.state == State.COMPLETE:
        return Obstacle(
            f'{field}: FineTuneJob "{name}" is complete, so its checkpoints are deleted.',
            final=True,
            remedy="Remove spec.resumeFrom. To continue from its adapter, set spec.method.lora.from to the folder "
            f"adapter in {earlier.output}.",
        )
    if earlier.state != State.FAILED:
        return Obstacle(
            f'{field}: FineTuneJob "{name}" has not ended. It is {earlier.state or State.PENDING}.',
            late,
            "Create this job when that job has failed. A suspended job continues from its own checkpoint: its "
            "condition Ready says what resumes it.",
        )
    if earlier.is_cleaned:
        return Obstacle(
            f'{field}: the checkpoints of FineTuneJob "{name}" are being deleted, because the time of its '
            "spec.runPolicy.keepCheckpointsSeconds is over.",
            final=False,
            remedy="Create this job again without spec.resumeFrom.",
        )
    bucket = bucket_of(earlier.output)
    if bucket and storage_of(bucket, profile.storages) is None:
        finding, remedy = unknown_bucket(bucket, spec.profile_name, profile.storages)
        return Obstacle(f"{field}: the output of FineTuneJob {name}: {finding}", final=True, remedy=remedy)
    if refused := claims.refusal(earlier.output, spec.profile_name, profile.claims):
        return Obstacle(f"{field}: the output of FineTuneJob {name}: {refused[0]}", final=True, remedy=refused[1])
    return None


def _no_gpu_type(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, begun: bool) -> Obstacle | None:
    """Return why the job can use no GPU type of the profile; None if it can, or has one already."""
    asked, recorded = spec.compute.gpu_type, world.status.gpu_type
    if recorded is None and (none := no_gpu_type(spec, profile.gpu_types)):
        finding, remedy = none
        return Obstacle(finding, final=not begun, remedy=remedy)
    budget = spec.policy.budget
    price = gpu_choice.price_of(world) if recorded else gpu_choice.candidates(world, spec, profile)
    if budget is not None and budget.cost is not None and not price:
        finding, remedy = gpu_choice.no_price(spec, recorded.name if recorded else asked)
        return Obstacle(finding, final=False, remedy=remedy)
    if gpu_choice.of_job(world) is None:
        finding, remedy = gpu_choice.none_fits(world, spec, profile)
        return Obstacle(finding, final=False, remedy=remedy)
    return None


def owner_of_output(world: World) -> str | None:
    """Return a sentence that names the job that owns output.uri, if that is another job; else None.

    The owner is the job that requested a GPU first, or else the oldest job. Without this check, publishing would refuse
    the other job after its whole training."""
    first = (world.created, world.uid)
    owner = next((rival for rival in world.rivals if rival.begun or (rival.created, rival.uid) < first), None)
    if owner is None or world.spec is None:
        return None
    mine, theirs = world.spec.output.uri, owner.overlapping
    if theirs is None:
        return f"spec.output.uri: the unfinished job {owner.name} also writes to {mine} and was first."
    inner, outer = sorted((mine, theirs), key=lambda uri: len(normal(uri)), reverse=True)
    return (
        f"spec.output.uri: the unfinished job {owner.name} writes to {theirs} and was first. {inner} is inside "
        f"{outer}, so each job could overwrite results of the other."
    )


def _unreadable_bundle(world: World, error: str) -> Obstacle:
    """Return the obstacle that the input of the pods cannot be read: they may need Secrets that are not known."""
    name = names.child_prefix(world.name, world.uid)
    return Obstacle(
        f"This version of the operator cannot read ConfigMap {name}, the input of the job's pods: {error}",
        final=False,
        remedy=f"Update the operator, or delete the ConfigMap: kubectl delete configmap {name} --namespace "
        f"{world.namespace}. The operator then creates it again.",
    )


def _foreign_bundle(world: World, error: str) -> Obstacle:
    """Return the obstacle that the input of the pods is not the operator's. It could name any Secret."""
    return Obstacle(
        f"ConfigMap {names.child_prefix(world.name, world.uid)}, the input of the job's pods, is not used: {error}",
        final=False,
        remedy="The operator deletes the ConfigMap and creates it again. Do not create or replace it.",
    )


def _keeps_its_bundle(world: World) -> bool:
    """Whether a pod runs or starts with the bundle of the job. It is then not read, so it is not known here."""
    runs = (world.preflight, *world.attempts.values())
    live = [run for run in runs if run is not None and run.is_live]
    return world.bundle is None and any(not bundles.is_lacking(world, run) for run in live)


def _outside(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Obstacle | None:
    """Return the first URI that the storages, the hub or the claims of the job do not contain; None if there is none.
    The job has those of its bundle, or else those of the profile."""
    part = world.bundle or profile
    return _unknown_bucket(spec, part.storages) or _refused(spec, part.hub, part.claims)


def _unknown_bucket(spec: FineTuneJobSpec, storages: list[Storage]) -> Obstacle | None:
    """Return the first URI whose bucket is in none of the storages; None if there is none."""
    for field, uri in uris_of(spec).items():
        bucket = bucket_of(uri)
        if bucket and storage_of(bucket, storages) is None:
            finding, remedy = unknown_bucket(bucket, spec.profile_name, storages)
            return Obstacle(f"{field}: {finding}", final=True, remedy=remedy)
    return None


def _refused(spec: FineTuneJobSpec, hub_of_job: Hub | None, allowed: Claims | None) -> Obstacle | None:
    """Return the first hf:// or pvc:// URI that is not allowed; None if there is none."""
    profile = spec.profile_name
    for field, uri in uris_of(spec).items():
        if refused := hub.refusal(uri, profile, hub_of_job) or claims.refusal(uri, profile, allowed):
            finding, remedy = refused
            return Obstacle(f"{field}: {finding}", final=True, remedy=remedy)
    return None


def _misplaced_cache(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Obstacle | None:
    """Return the obstacle that the bucket of the profile's cache is in no storage of the profile; None if it is.

    The tenant cannot correct the profile, so the job waits."""
    bucket = bucket_of(profile.prepared_cache.uri) if profile.prepared_cache else None
    if bucket is None or storage_of(bucket, profile.storages):
        return None
    finding, _ = unknown_bucket(bucket, spec.profile_name, profile.storages)
    return Obstacle(
        f"spec.preparedCache.uri of FineTuneProfile {spec.profile_name}: {finding}",
        final=False,
        remedy="Correct spec.preparedCache.uri of the profile, or add its bucket to spec.storages. "
        "The job then starts.",
    )
