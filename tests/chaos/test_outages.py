"""What the faults break is really broken, and whole again afterwards."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import ClusterError, images
from devcluster.node import LEASE_SECONDS
from tests.chaos.scene import LANES, SECOND_NODE, Scene
from tests.chaos.trial import Undisturbed
from tests.integration.waiting import wait_for

READY = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
PROBE = "import time\nwhile True: time.sleep(1)"


def ready(scene: Scene) -> str:
    return scene.cluster.kubectl("get", "node", SECOND_NODE, "-o", READY)


@pytest.fixture
def pod(scene: Scene) -> Iterator[str]:
    """A pod that runs on the second node. Returns its name."""
    container = {"name": "probe", "image": images.TRAINER_IMAGE, "command": [images.python(), "-c", PROBE]}
    spec = {"nodeName": SECOND_NODE, "restartPolicy": "Never", "containers": [container]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}
    scene.cluster.kubectl("apply", "-f", "-", input=json.dumps(body))
    scene.cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Running", "pod/probe", "--timeout=180s")
    yield "probe"
    scene.cluster.kubectl("delete", "pod", "probe", "--force", "--grace-period=0")


def phase(scene: Scene, pod: str) -> str:
    return scene.cluster.kubectl("get", "pod", pod, "-o", "jsonpath={.status.phase}")


@pytest.mark.thorough
def test_a_node_off_the_network_is_lost_and_its_pod_runs_on(scene: Scene, pod: str) -> None:
    scene.outages.disconnect(SECOND_NODE)
    wait_for("the node to be lost", lambda: ready(scene), lambda found: found == "Unknown", LEASE_SECONDS + 40)
    with pytest.raises(ClusterError):
        scene.cluster.kubectl("logs", pod, "--request-timeout=3s")

    scene.outages.connect(SECOND_NODE)

    assert (ready(scene), phase(scene, pod)) == ("True", "Running")
    assert scene.cluster.kubectl("logs", pod) == ""


@pytest.mark.thorough
def test_a_node_without_power_loses_its_pod_and_comes_back_with_room_for_another(scene: Scene, pod: str) -> None:
    scene.outages.power_off(SECOND_NODE)
    wait_for("the node to be lost", lambda: ready(scene), lambda found: found == "Unknown", LEASE_SECONDS + 40)

    scene.outages.power_on(SECOND_NODE)

    wait_for("the pod's end to be known", lambda: phase(scene, pod), lambda found: found == "Failed")
    gpus = scene.cluster.kubectl("get", "node", SECOND_NODE, "-o", "jsonpath={.status.allocatable.nvidia\\.com/gpu}")
    assert gpus == str(LANES)


def test_another_api_server_answers_after_a_restart(scene: Scene) -> None:
    before = scene.cluster.components()["kube-apiserver"]

    scene.outages.restart_api_server()

    assert scene.cluster.components()["kube-apiserver"] != before
    assert ready(scene) == "True"


def test_nothing_is_answered_while_etcd_stands_still(scene: Scene) -> None:
    scene.outages.pause("etcd")
    try:
        with pytest.raises(ClusterError, match=r"Timeout|timed out|deadline exceeded|etcdserver"):
            scene.cluster.kubectl("get", "nodes", "--request-timeout=2s")
    finally:
        scene.outages.resume("etcd")

    assert wait_for("the node", lambda: ready(scene)) == "True"
    outer = scene.cluster.components()["etcd"]
    state = Path(f"/proc/{outer}/stat").read_text().rpartition(")")[2].split()[0]
    assert state != "T", "nsenter is still paused, and could not be stopped"


def test_pods_reach_the_api_server_and_s3_through_the_proxies(scene: Scene, basis: Undisturbed) -> None:
    assert any(call.writes_status for call in scene.api.calls)
    name = f"undisturbed-{scene.lanes[0].tenant.namespace}"
    assert any(call.method == "PUT" and name in call.path for call in scene.lanes[0].s3.calls)
