"""Faults of what all jobs share: the API server, etcd and the operator."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

from tests.chaos.pods import process_of
from tests.chaos.scene import Lane
from tests.e2e.setting import SYSTEM
from tests.integration.api_proxy import ApiProxy
from tests.integration.faults import Harm, Trouble
from tests.integration.jobs import Job
from tests.integration.kube import PODS

OUTAGE_SECONDS = 60.0
"""How long the API server or S3 is in trouble."""
PAUSE_SECONDS = 30.0
"""How long etcd stands still."""
WATCH_SECONDS = 5.0
OPERATOR_KILLS, MOST_SECONDS_BETWEEN_KILLS = 5, 10.0
OPERATOR = ("-n", SYSTEM, "deployment/finetune-operator")


def api_troubled(*codes: int) -> Callable[[Lane, Job], None]:
    """Returns the harm that a tenth of the requests is refused with each of these codes for a minute: watches are not,
    and a conflict (409) is an answer to a write."""

    def refuses(code: int) -> Trouble:
        return Trouble(
            Harm.REFUSED,
            share=0.1,
            code=code,
            matches=lambda asked: not asked.is_watch and (code != 409 or asked.method != "GET"),
        )

    def harm(lane: Lane, job: Job) -> None:
        with troubled(lane.scene.api, [refuses(code) for code in codes]):
            time.sleep(OUTAGE_SECONDS)

    return harm


def cut_watches(lane: Lane, job: Job) -> None:
    """Every watch is cut every five seconds, for a minute."""
    for _ in range(int(OUTAGE_SECONDS / WATCH_SECONDS)):
        lane.scene.api.cut_watches()
        time.sleep(WATCH_SECONDS)


def restart_api_server(lane: Lane, job: Job) -> None:
    lane.scene.outages.restart_api_server()


def pause_etcd(lane: Lane, job: Job) -> None:
    """etcd stands still, so the API server answers nothing."""
    lane.scene.outages.pause("etcd")
    try:
        time.sleep(PAUSE_SECONDS)
    finally:
        lane.scene.outages.resume("etcd")


def kill_operator(lane: Lane, job: Job) -> None:
    """Kills the operator's process at five random moments, and removes its pod: the kubelet would restart it later and
    later."""
    draw = Random(job.uid)
    for _ in range(OPERATOR_KILLS):
        for pod in lane.tenant.kube.list(PODS.format(SYSTEM)):
            if pid := process_of(pod, "operator"):
                os.kill(pid, signal.SIGKILL)
        lane.scene.cluster.kubectl("delete", "pod", "-n", SYSTEM, "--all", "--force", "--grace-period=0")
        time.sleep(draw.uniform(0, MOST_SECONDS_BETWEEN_KILLS))


def two_operators(lane: Lane, job: Job) -> None:
    """Runs a second operator beside the first until the job has ended."""
    lane.scene.cluster.kubectl("scale", *OPERATOR, "--replicas=2")
    lane.later(lambda: lane.scene.cluster.kubectl("scale", *OPERATOR, "--replicas=1"))


@contextmanager
def troubled(proxy: ApiProxy, troubles: Sequence[Trouble]) -> Iterator[None]:
    """Lets these troubles befall the requests to the proxy while the block runs."""
    proxy.troubles = troubles
    try:
        yield
    finally:
        proxy.troubles = ()
