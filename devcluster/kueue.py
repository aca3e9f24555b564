"""Kueue as one more process of the control plane, with the manifests of its own release.

Left out of the release: the Deployment, because the process replaces it, and the API for pending workloads, which would
need a second serving certificate. Kueue itself makes the certificate of its webhooks, as in every cluster."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from devcluster.control_plane import ControlPlane
from devcluster.processes import Processes

NAME = "kueue"
NAMESPACE = "kueue-system"
START_SECONDS = 60.0
_WEBHOOKS = "kueue-webhook-service"
_CERTIFICATE = "kueue-webhook-server-cert"
_PORT = 9443
_CONFIGURATION = {
    "apiVersion": "config.kueue.x-k8s.io/v1beta2",
    "kind": "Configuration",
    "leaderElection": {"leaderElect": False},
    "metrics": {"bindAddress": "0"},
    "featureGates": {"VisibilityOnDemand": False},
    "integrations": {"frameworks": ["batch/job"]},
}
_PROBE = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "probe"}}

Object = dict[str, Any]
Kubectl = Callable[..., str]
"""`Cluster.kubectl`."""


class Kueue:
    """Kueue of a cluster with a node. `parts`: the folder that `build.built_kueue` returns."""

    def __init__(self, plane: ControlPlane, processes: Processes, kubectl: Kubectl, parts: Path) -> None:
        self._plane, self._processes, self._kubectl, self._parts = plane, processes, kubectl, parts
        self._folder = plane.folder / NAME

    def start(self) -> None:
        """Installs the release and returns when Kueue answers to the API server. Raises ClusterError if it does not."""
        manifests = list(_without_pods(json.loads((self._parts / "manifests.json").read_text())))
        manifests.append(_endpoints(self._plane.address))
        # The definitions are too long for the annotation of a client-side apply.
        self._kubectl("apply", "--server-side", "-f", "-", input=_list(manifests))
        keys = self._folder / "keys"
        shutil.rmtree(keys, ignore_errors=True)  # the certificate of an earlier start
        keys.mkdir(parents=True)
        config = self._folder / "config.yaml"
        config.write_text(json.dumps({**_CONFIGURATION, "webhook": {"port": _PORT, "certDir": str(keys)}}))
        command = [str(self._parts / NAME), f"--kubeconfig={self._plane.kubeconfig}", f"--config={config}"]
        self._processes.start(NAME, [*self._plane.prefix, *command])
        self._processes.wait_for("Kueue's certificate", lambda: self._mount_certificate(keys), [NAME], START_SECONDS)
        self._processes.wait_for("Kueue", self._answers, [NAME], START_SECONDS)

    def stop(self) -> None:
        """Ends Kueue and deletes its webhooks and definitions, and so all its objects.

        Raises ClusterError if a queue or a Workload is left: only Kueue can remove its finalizer."""
        webhooks = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations", "customresourcedefinitions")
        self._processes.stop(NAME)
        waiting = f"--timeout={START_SECONDS:.0f}s"
        self._kubectl("delete", ",".join(webhooks), "--selector", "app.kubernetes.io/name=kueue", waiting)
        self._kubectl("delete", "namespace", NAMESPACE, waiting)

    def _mount_certificate(self, keys: Path) -> bool:
        """Writes the certificate that Kueue has put into its Secret to its folder, as the kubelet does for a pod."""
        data = json.loads(self._kubectl("get", "secret", _CERTIFICATE, "-n", NAMESPACE, "-o", "json")).get("data")
        for name, text in (data or {}).items():
            (keys / name).write_bytes(base64.b64decode(text))
        return bool(data)

    def _answers(self) -> bool:
        """Whether the API server accepts an object of Kueue, for which it asks Kueue's webhooks."""
        try:
            self._kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(_PROBE))
        except Exception:
            return False
        return True


def _without_pods(release: list[Object]) -> Iterator[Object]:
    """Yields the objects of the release that a process outside of pods needs."""
    for item in release:
        name = item["metadata"]["name"]
        if item["kind"] in ("Deployment", "ConfigMap", "APIService") or (item["kind"], name) in _NOT_SERVED:
            continue
        if item["kind"] == "Service":
            del item["spec"]["selector"]  # so that nobody replaces the endpoints below
        yield item


_NOT_SERVED = {("Service", "kueue-visibility-server"), ("Service", "kueue-controller-manager-metrics-service")}


def _endpoints(address: str) -> Object:
    """Returns where the Service of the webhooks leads to."""
    labels = {"kubernetes.io/service-name": _WEBHOOKS}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": _WEBHOOKS, "namespace": NAMESPACE, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"name": "", "port": _PORT, "protocol": "TCP"}],
    }


def _list(items: list[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
