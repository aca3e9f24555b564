"""Faults of what all jobs share: S3, the API server, etcd and the operator."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from devcluster.storage import S3Keys, secret_manifest
from tests.chaos.pods import pod_at_work, process_of, secrets_of
from tests.chaos.scene import Scene
from tests.e2e.setting import SYSTEM
from tests.integration.api_proxy import ApiProxy
from tests.integration.faults import Harm, Trouble
from tests.integration.jobs import Job
from tests.integration.kube import PODS
from tests.integration.waiting import wait_for

OUTAGE_SECONDS = 60.0
"""How long S3 is away, or in trouble."""
PAUSE_SECONDS = 30.0
"""How long etcd stands still."""
WATCH_SECONDS = 5.0
MOUNT_SECONDS = 150.0
"""How long the kubelet may take to bring a changed Secret into a pod."""
OPERATOR = ("-n", SYSTEM, "deployment/finetune-operator")


def s3_away(scene: Scene, job: Job) -> None:
    """S3 refuses connections for a minute."""
    scene.s3.refuse_connections()
    time.sleep(OUTAGE_SECONDS)
    scene.s3.mend()


def s3_troubled(*troubles: Trouble) -> Callable[[Scene, Job], None]:
    """Returns the harm that these troubles befall requests to S3 for a minute."""

    def harm(scene: Scene, job: Job) -> None:
        with _set(scene.s3, troubles):
            time.sleep(OUTAGE_SECONDS)

    return harm


def deny_last_upload(scene: Scene, job: Job) -> None:
    """S3 refuses the manifest, which is uploaded last, until the job has ended."""
    last = Trouble(Harm.REFUSED, code=403, matches=lambda asked: asked.method == "PUT" and _is_manifest(asked.path))
    scene.s3.troubles = (last,)


def rotate_keys(scene: Scene, job: Job) -> None:
    """Puts other keys into the Secret. The old ones are refused once the pod that runs has the new ones."""
    old, new = scene.cluster.s3_keys("admin"), scene.cluster.s3_keys("successor")
    put = partial(_put_keys, scene, job.namespace)
    put(new)
    scene.later(lambda: put(old))
    if pod := pod_at_work(job):
        keys = [place / "AWS_ACCESS_KEY_ID" for place in secrets_of(scene, pod)]
        # The kubelet brings a changed Secret to a pod within a minute or two. The pod may end meanwhile.
        with suppress(AssertionError):
            wait_for("the pod to have the new keys", lambda: _have(keys, new.access_key), timeout=MOUNT_SECONDS)
    refused = Trouble(Harm.REFUSED, code=403, matches=lambda asked: old.access_key in asked.authorization)
    scene.s3.troubles = (refused,)


def _put_keys(scene: Scene, namespace: str, keys: S3Keys) -> None:
    scene.cluster.kubectl("apply", "-f", "-", input=secret_manifest(keys, "s3", namespace))


def _have(files: Sequence[Path], key: str) -> bool:
    """Whether every file has the key. Files of a pod that has ended are gone, and nobody waits for them."""
    return all(not file.exists() or file.read_text() == key for file in files)


def api_troubled(*codes: int) -> Callable[[Scene, Job], None]:
    """Returns the harm that a tenth of the requests is refused with each of these codes for a minute: watches are not,
    and a conflict (409) is an answer to a write."""

    def refuses(code: int) -> Trouble:
        return Trouble(
            Harm.REFUSED,
            share=0.1,
            code=code,
            matches=lambda asked: not asked.is_watch and (code != 409 or asked.method != "GET"),
        )

    def harm(scene: Scene, job: Job) -> None:
        with _set(scene.api, [refuses(code) for code in codes]):
            time.sleep(OUTAGE_SECONDS)

    return harm


def cut_watches(scene: Scene, job: Job) -> None:
    """Every watch is cut every five seconds, for a minute."""
    for _ in range(int(OUTAGE_SECONDS / WATCH_SECONDS)):
        scene.api.cut_watches()
        time.sleep(WATCH_SECONDS)


def restart_api_server(scene: Scene, job: Job) -> None:
    scene.outages.restart_api_server()


def pause_etcd(scene: Scene, job: Job) -> None:
    """etcd stands still, so the API server answers nothing."""
    scene.outages.pause("etcd")
    time.sleep(PAUSE_SECONDS)
    scene.outages.resume("etcd")


def kill_operator(scene: Scene, job: Job) -> None:
    """Kills the operator's process, and removes its pod: the kubelet would restart it later and later."""
    for pod in scene.tenant.kube.list(PODS.format(SYSTEM)):
        if pid := process_of(pod, "operator"):
            os.kill(pid, signal.SIGKILL)
    scene.cluster.kubectl("delete", "pod", "-n", SYSTEM, "--all", "--force", "--grace-period=0")


def two_operators(scene: Scene, job: Job) -> None:
    """Runs a second operator beside the first until the job has ended."""
    scene.cluster.kubectl("scale", *OPERATOR, "--replicas=2")
    scene.later(lambda: scene.cluster.kubectl("scale", *OPERATOR, "--replicas=1"))


@contextmanager
def _set(proxy: ApiProxy, troubles: Sequence[Trouble]) -> Iterator[None]:
    proxy.troubles = troubles
    try:
        yield
    finally:
        proxy.troubles = ()


def _is_manifest(path: str) -> bool:
    """Whether this is the manifest of the results, not that of a checkpoint."""
    return path.partition("?")[0].endswith("/manifest.json") and "/.work/" not in path
