"""PersistentVolumeClaims with their volumes, which nobody provisions at this level."""

from tests.integration.finetune_operator.kubelet import NODE
from tests.integration.kube import Kube, Object
from tests.integration.waiting import wait_for

VOLUMES, ATTACHMENTS = "/api/v1/persistentvolumes", "/apis/storage.k8s.io/v1/volumeattachments"


class Volumes:
    """The claims of a namespace, each bound to a volume of its own."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self._namespace = kube, namespace
        self._made: list[str] = []

    def claim(self, name: str, mode: str = "ReadWriteMany") -> str:
        """Makes a claim and its volume. Returns the name of the volume, once the claim is bound."""
        volume, amount = f"{self._namespace}-{name}", {"storage": "1Gi"}
        reference = {"namespace": self._namespace, "name": name}
        spec = {"capacity": amount, "accessModes": [mode], "storageClassName": "", "claimRef": reference}
        source = {"hostPath": {"path": "/nowhere"}}
        self._make(VOLUMES, "PersistentVolume", volume, {**spec, **source})
        claims = f"/api/v1/namespaces/{self._namespace}/persistentvolumeclaims"
        wish = {"accessModes": [mode], "storageClassName": "", "resources": {"requests": amount}, "volumeName": volume}
        self._make(claims, "PersistentVolumeClaim", name, wish)
        wait_for(f"claim {name} to be bound", lambda: self._kube.get(f"{claims}/{name}")["status"]["phase"] == "Bound")
        return volume

    def attach(self, volume: str) -> str:
        """Attaches a volume to the node. Returns the path of the attachment."""
        spec = {"attacher": "csi.example", "nodeName": NODE, "source": {"persistentVolumeName": volume}}
        return self._make(ATTACHMENTS, "VolumeAttachment", f"csi-{volume}", spec, "storage.k8s.io/v1")

    def delete(self) -> None:
        for path in reversed(self._made):
            self._kube.delete(path)

    def _make(self, path: str, kind: str, name: str, spec: Object, version: str = "v1") -> str:
        self._kube.create(path, {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec})
        self._made.append(f"{path}/{name}")
        return self._made[-1]
