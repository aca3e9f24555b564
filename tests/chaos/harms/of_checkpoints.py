"""Faults of the checkpoints in S3. The trainer is killed after each, so that the next attempt has to read them."""

import signal
from collections.abc import Sequence
from functools import partial

from tests.chaos.harms.of_pods import kill
from tests.chaos.scene import Lane
from tests.integration.jobs import Job
from tests.integration.waiting import wait_for

BUCKET = "results"
FIRST_SECONDS = 60.0
"""How long the first checkpoint of a training may take."""
STATE = "state.safetensors"


def truncate_newest(lane: Lane, job: Job) -> None:
    """Cuts the state of the newest checkpoint in half."""
    key = _newest(lane, job)
    whole = lane.tenant.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    lane.tenant.s3.put_object(Bucket=BUCKET, Key=key, Body=whole[: len(whole) // 2])
    kill(lane, job, signal.SIGKILL)


def delete_of_newest(lane: Lane, job: Job) -> None:
    """Deletes the state of the newest checkpoint."""
    lane.tenant.s3.delete_object(Bucket=BUCKET, Key=_newest(lane, job))
    kill(lane, job, signal.SIGKILL)


def _newest(lane: Lane, job: Job) -> str:
    """Returns the key of the state of the newest checkpoint. Waits for the first one."""
    found = wait_for("a checkpoint", partial(_states, lane, job), timeout=FIRST_SECONDS)
    return max(found)


def _states(lane: Lane, job: Job) -> Sequence[str]:
    """Returns the keys of the states of complete checkpoints. Their order is that of their steps."""
    prefix = f"{job.name}/.work/{job.uid}/checkpoints/"
    keys = lane.tenant.objects(BUCKET, prefix)
    complete = {key.removesuffix("manifest.json") for key in keys if key.endswith("/manifest.json")}
    return [f"{folder}{STATE}" for folder in complete]
