"""Claims of volumes of the tenant, each with a folder of the node behind it, and the logs of pods that mount them."""

from pathlib import Path

from devcluster import Cluster
from tests.e2e.tenant import Tenant
from tests.integration.jobs import Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for


def bind(tenant: Tenant, name: str, folder: Path, mode: str = "ReadWriteMany") -> None:
    """Makes the folder, and a claim and the volume to which it is bound. Any user may write there."""
    folder.mkdir(parents=True)
    folder.chmod(0o777)  # of hostPath, the kubelet changes no owner
    volume, claim = _volume(tenant, name), _claim(tenant, name)
    amount, reference = {"storage": "1Gi"}, {"namespace": tenant.namespace, "name": name}
    shared = {"accessModes": [mode], "storageClassName": ""}
    source = {"capacity": amount, "hostPath": {"path": str(folder)}, "claimRef": reference}
    tenant.kube.create(_parent(volume), _body("PersistentVolume", volume, shared | source))
    wish = shared | {"resources": {"requests": amount}, "volumeName": Path(volume).name}
    tenant.kube.create(_parent(claim), _body("PersistentVolumeClaim", claim, wish))
    wait_for(f"claim {name} to be bound", lambda: tenant.kube.get(claim)["status"]["phase"] == "Bound")


def unbind(tenant: Tenant, name: str) -> None:
    """Deletes the claim and its volume. The folder stays."""
    tenant.kube.delete(_claim(tenant, name))
    tenant.kube.delete(_volume(tenant, name))


def log_of(tenant: Tenant, cluster: Cluster, job: Job, container: str) -> str:
    """Returns the log of a container of the first attempt."""
    child = f"job/{job.child('a1')}"
    return str(cluster.kubectl("logs", "-n", tenant.namespace, child, "--container", container))


def _claim(tenant: Tenant, name: str) -> str:
    return f"/api/v1/namespaces/{tenant.namespace}/persistentvolumeclaims/{name}"


def _volume(tenant: Tenant, name: str) -> str:
    return f"/api/v1/persistentvolumes/{tenant.namespace}-{name}"


def _parent(path: str) -> str:
    return path.rsplit("/", 1)[0]


def _body(kind: str, path: str, spec: Object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": path.rsplit("/", 1)[1]}, "spec": spec}
