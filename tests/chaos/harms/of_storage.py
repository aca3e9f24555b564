"""Faults of S3, as one job sees it: its pods reach S3 through the proxy of their lane."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from devcluster.storage import S3Keys, secret_manifest
from tests.chaos.harms.of_cluster import OUTAGE_SECONDS, troubled
from tests.chaos.harms.of_pods import order
from tests.chaos.pods import pod_at_work, secrets_of
from tests.chaos.scene import Lane
from tests.integration.faults import Harm, Trouble
from tests.integration.jobs import Job
from tests.integration.waiting import wait_for

MOUNT_SECONDS = 150.0
"""How long the kubelet may take to bring a changed Secret into a pod."""


def s3_away(lane: Lane, job: Job) -> None:
    """S3 refuses connections for a minute."""
    lane.s3.refuse_connections()
    time.sleep(OUTAGE_SECONDS)
    lane.s3.mend()


def s3_troubled(*troubles: Trouble) -> Callable[[Lane, Job], None]:
    """Returns the harm that these troubles befall requests to S3 for a minute."""

    def harm(lane: Lane, job: Job) -> None:
        with troubled(lane.s3, troubles):
            time.sleep(OUTAGE_SECONDS)

    return harm


def deny_last_upload(lane: Lane, job: Job) -> None:
    """S3 refuses the manifest, which is uploaded last, until the job has ended."""
    last = Trouble(Harm.REFUSED, code=403, matches=lambda asked: asked.method == "PUT" and _is_manifest(asked.path))
    lane.s3.troubles = (last,)


def rotate_keys(lane: Lane, job: Job) -> None:
    """Puts other keys into the Secret. The old ones are refused once the pod that runs has the new ones. The steps are
    slowed down, so that this happens while it trains."""
    order(lane, job, "slow")
    old, new = lane.scene.cluster.s3_keys("admin"), lane.scene.cluster.s3_keys("successor")
    put = partial(_put_keys, lane, job.namespace)
    put(new)
    lane.later(lambda: put(old))
    if pod := pod_at_work(job):
        keys = [place / "AWS_ACCESS_KEY_ID" for place in secrets_of(lane.scene, pod)]
        # The kubelet brings a changed Secret to a pod within a minute or two. The pod may end meanwhile.
        with suppress(AssertionError):
            wait_for("the pod to have the new keys", lambda: _have(keys, new.access_key), timeout=MOUNT_SECONDS)
    refused = Trouble(Harm.REFUSED, code=403, matches=lambda asked: old.access_key in asked.authorization)
    lane.s3.troubles = (refused,)


def _put_keys(lane: Lane, namespace: str, keys: S3Keys) -> None:
    lane.scene.cluster.kubectl("apply", "-f", "-", input=secret_manifest(keys, "s3", namespace))


def _have(files: Sequence[Path], key: str) -> bool:
    """Whether every file has the key. Files of a pod that has ended are gone, and nobody waits for them."""
    return all(not file.exists() or file.read_text() == key for file in files)


def _is_manifest(path: str) -> bool:
    """Whether this is the manifest of the results, not that of a checkpoint."""
    return path.partition("?")[0].endswith("/manifest.json") and "/.work/" not in path
