"""A restricted pod in the local cluster reaches only the API server and S3."""

import json

from devcluster import Cluster, images

PROBE = """
import os, socket, ssl, sys, urllib.error, urllib.request
import torch, finetune_trainer, finetune_api
def status(url):
    try:
        return urllib.request.urlopen(url, timeout=30, context=ssl._create_unverified_context()).status
    except urllib.error.HTTPError as error:
        return error.code
assert os.getuid() == 65532
assert status("https://" + os.environ["KUBERNETES_SERVICE_HOST"]) == 403, "the API server"
assert status(sys.argv[1]) == 403, "S3, which wants a signature"
for address in ("192.0.2.1", "10.89.0.1"):  # a documentation address, and the machine's end of the link
    try:
        socket.create_connection((address, 80), timeout=5)
    except OSError as error:
        assert "unreachable" in str(error), error
    else:
        raise SystemExit(f"{address} was reached")
print("closed")
"""


def test_a_pod_reaches_the_api_server_and_s3_and_nothing_else(cluster: Cluster) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "probe", "labels": labels}}
    container = {
        "name": "probe",
        "image": images.TRAINER_IMAGE,
        "command": [images.python(), "-c", PROBE, cluster.s3_endpoint],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": "probe"},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
    cluster.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": [namespace]}))
    cluster.kubectl("wait", "--for=create", "-n", "probe", "serviceaccount/default", "--timeout=120s")
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    finished = "--for=jsonpath={.status.containerStatuses[0].state.terminated}"
    cluster.kubectl("wait", finished, "-n", "probe", "pod/probe", "--timeout=240s")

    assert cluster.kubectl("logs", "-n", "probe", "probe") == "closed\n"
