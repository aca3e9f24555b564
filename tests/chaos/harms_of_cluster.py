"""Faults of what all jobs share: S3, the API server, etcd and the operator."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.chaos.scene import Scene
from tests.e2e.setting import SYSTEM
from tests.integration.api_proxy import ApiProxy
from tests.integration.faults import Harm, Trouble
from tests.integration.jobs import Job

OUTAGE_SECONDS = 60.0
"""How long S3 is away, or in trouble."""
PAUSE_SECONDS = 30.0
"""How long etcd stands still."""
WATCH_SECONDS = 5.0
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
    last = Trouble(Harm.REFUSED, code=403, matches=lambda method, path: method == "PUT" and _is_manifest(path))
    scene.s3.troubles = (last,)


def api_troubled(*codes: int) -> Callable[[Scene, Job], None]:
    """Returns the harm that a tenth of the requests is refused with each of these codes for a minute: watches are not,
    and a conflict (409) is an answer to a write."""

    def refuses(code: int) -> Trouble:
        return Trouble(
            Harm.REFUSED,
            share=0.1,
            code=code,
            matches=lambda method, path: "watch=true" not in path and (code != 409 or method != "GET"),
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
    """Kills the operator's pod without grace. Its Deployment makes another one."""
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
