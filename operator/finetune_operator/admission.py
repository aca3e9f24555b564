"""What has to hold before the first pod: the spec is readable, the profile and the ServiceAccount are there."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.names import TRAINER_SERVICE_ACCOUNT
from finetune_operator.world import World

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
    late = now - world.created >= GRACE
    if world.profile is None:
        return Obstacle(f'spec.profileName: there is no FineTuneProfile "{world.spec.profile_name}".', late)
    account = world.spec.compute.service_account_name
    if account not in (None, TRAINER_SERVICE_ACCOUNT) and not world.service_account_exists:
        return Obstacle(
            f'spec.compute.serviceAccountName: there is no ServiceAccount "{account}" in namespace {world.namespace}.',
            late,
        )
    return None
