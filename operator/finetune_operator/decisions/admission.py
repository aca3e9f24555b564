"""What has to hold before the first pod: the spec is readable, the profile is there and knows the buckets, the job does
not write where it reads, the ServiceAccount is there and may report. And before a GPU is asked for: no other job is to
write to the same place."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.bundle import bucket_of, storage_of, uris_of
from finetune_api.conflicts import conflicts, normal
from finetune_api.names import TRAINER_SERVICE_ACCOUNT
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import ConditionType
from finetune_operator.observed.world import World

GRACE = timedelta(seconds=30)
"""How long a job waits for what it names: a pipeline may apply a job before its profile."""
LOOK_AGAIN = timedelta(seconds=5)


@dataclass(frozen=True)
class Obstacle:
    """Why the job cannot start; `final` once waiting any longer is no use."""

    message: str
    final: bool


def obstacle(world: World, now: datetime) -> Obstacle | None:
    """The first thing that is missing, if any."""
    if world.spec is None:
        return Obstacle(world.spec_error or "spec cannot be read.", final=True)
    # A job that has begun found everything once: what is missing now will be back.
    begun = world.preflight is not None or world.status.is_true(ConditionType.VALIDATED)
    late = now - world.created >= GRACE and not begun
    if world.profile_error:
        unread = f"FineTuneProfile {world.spec.profile_name} is newer than this operator, or older"
        return Obstacle(f"{unread}: {world.profile_error}", final=False)
    if world.profile is None:
        return Obstacle(f'spec.profileName: there is no FineTuneProfile "{world.spec.profile_name}".', late)
    if message := _unknown_bucket(world.spec, world.profile):
        return Obstacle(message, final=True)
    if not begun and (conflict := next(conflicts(world.spec), None)):
        return Obstacle(f"{conflict.field}: {conflict.message}", final=True)
    account = world.spec.compute.service_account_name
    if account not in (None, TRAINER_SERVICE_ACCOUNT) and not world.service_account_exists:
        return Obstacle(
            f'spec.compute.serviceAccountName: there is no ServiceAccount "{account}" in namespace {world.namespace}.',
            late,
        )
    if not world.service_account_may_report:
        return Obstacle(
            f"spec.compute.serviceAccountName: {account} may not report to the job. Bind it: "
            f"kubectl create rolebinding {account}-reports --namespace {world.namespace} "
            f"--clusterrole {TRAINER_SERVICE_ACCOUNT} --serviceaccount {world.namespace}:{account}.",
            late,
        )
    return None


def owner_of_output(world: World) -> str | None:
    """Whose the place at output.uri is where it is not this job's, as a sentence: of those that may write there, the
    job that asked for a GPU first, or else the oldest. Publishing would refuse the other, after all of its training."""
    first = (world.created, world.uid)
    owner = next((rival for rival in world.rivals if rival.begun or (rival.created, rival.uid) < first), None)
    if owner is None or world.spec is None:
        return None
    mine, theirs = world.spec.output.uri, owner.overlapping
    if theirs is None:
        return f"output.uri: {owner.name}, which is not finished, writes to {mine} too and was first."
    inner, outer = sorted((mine, theirs), key=lambda uri: len(normal(uri)), reverse=True)
    return (
        f"output.uri: {owner.name}, which is not finished, writes to {theirs} and was first. "
        f"{inner} is inside {outer}, so that each job could overwrite results of the other."
    )


def _unknown_bucket(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> str | None:
    """A sentence about the first URI whose bucket lies in no storage of the profile, if there is one."""
    for field, uri in uris_of(spec).items():
        bucket = bucket_of(uri)
        if bucket and storage_of(bucket, profile.storages) is None:
            known = ", ".join(pattern for storage in profile.storages for pattern in storage.buckets)
            return (
                f"{field}: bucket {bucket} belongs to no storage of FineTuneProfile {spec.profile_name}, "
                f"which knows {known}."
            )
    return None
