"""The cluster of the demo: the local cluster, or the cluster of kubectl's current context (CLUSTER=current)."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster import Cluster, ClusterError, images
from devcluster.build import built
from devcluster.storage import REGION, S3Keys

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "demo"
"""The folder for the demo's results."""
NAMESPACE = "finetune-demo"
"""The tenant's namespace."""
SYSTEM_NAMESPACE = "finetune-system"
JOB = "tickets"
NEEDED = {
    "S3_ENDPOINT": "the address of an S3 service that the pods and this machine can reach",
    "S3_BUCKET": "a bucket for the demo's model, rows and results",
    "AWS_ACCESS_KEY_ID": "the id of a key with read and write permission for the bucket",
    "AWS_SECRET_ACCESS_KEY": "the secret of this key",
    "OPERATOR_IMAGE": "the operator's image, REPOSITORY:TAG",
    "TRAINER_IMAGE": "the trainer's image, REPOSITORY:TAG",
}
"""Environment variables that CLUSTER=current needs, with their meaning."""


@dataclass(frozen=True)
class Target:
    """A cluster and an S3 service."""

    local: bool
    kubectl_command: tuple[str, ...]
    helm_command: tuple[str, ...]
    endpoint: str
    region: str
    keys: S3Keys
    root: str
    """Prefix of the demo's S3 URIs: s3:// on the local cluster, or s3://BUCKET/ on another one."""
    release: str
    """Name of the chart's release."""
    operator_image: str
    trainer_image: str

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Returns the output of `kubectl ARGUMENTS`. Raises ClusterError with kubectl's message."""
        return _output([*self.kubectl_command, *arguments], input)

    def tenant(self, *arguments: str, input: str | None = None) -> str:
        """Returns the output of `kubectl ARGUMENTS` in the tenant's namespace. Raises ClusterError."""
        return self.kubectl("--namespace", NAMESPACE, *arguments, input=input)

    def helm(self, *arguments: str) -> str:
        """Returns the output of `helm ARGUMENTS`. Raises ClusterError with helm's message."""
        return _output([*self.helm_command, *arguments], None)

    def in_bucket(self, text: str) -> str:
        """Returns `text` with the example's S3 URIs replaced by URIs of this target."""
        return text.replace("s3://", self.root)


def local_target(cluster: Cluster) -> Target:
    """Returns the local cluster with its own S3 service. The cluster must be running."""
    program, config = str(built() / "kube"), str(cluster.kubeconfig)
    return Target(
        local=True,
        kubectl_command=(program, "kubectl", "--kubeconfig", config),
        helm_command=(program, "helm", "--kubeconfig", config),
        endpoint=cluster.s3_endpoint,
        region=REGION,
        keys=cluster.s3_keys(),
        root="s3://",
        release="finetune-operator",
        operator_image=images.OPERATOR_IMAGE,
        trainer_image=images.TRAINER_IMAGE,
    )


def current_target(environment: Mapping[str, str] = os.environ) -> Target:
    """Returns the cluster of kubectl's current context. Raises ClusterError that names missing variables and tools."""
    missing = [name for name in NEEDED if not environment.get(name)]
    if missing:
        explained = "\n".join(f"  {name}  {NEEDED[name]}".rstrip() for name in missing)
        raise ClusterError(f"CLUSTER=current needs these environment variables. Set them:\n{explained}")
    tools = [tool for tool in ("kubectl", "helm") if not shutil.which(tool)]
    if tools:
        names = " and ".join(tools)
        raise ClusterError(f"CLUSTER=current needs {names} on the PATH. Install {names}.")
    return Target(
        local=False,
        kubectl_command=("kubectl",),
        helm_command=("helm",),
        endpoint=environment["S3_ENDPOINT"],
        region=environment.get("AWS_REGION") or REGION,
        keys=S3Keys(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]),
        root=f"s3://{environment['S3_BUCKET']}/",
        release="finetune-demo",
        operator_image=environment["OPERATOR_IMAGE"],
        trainer_image=environment["TRAINER_IMAGE"],
    )


def is_local() -> bool:
    """Returns whether $CLUSTER is `local` (the default) and not `current`. Raises ClusterError for other values."""
    cluster = os.environ.get("CLUSTER") or "local"
    if cluster not in ("local", "current"):
        raise ClusterError(f"CLUSTER is {cluster}. Set CLUSTER to local or current.")
    return cluster == "local"


def running_target() -> Target:
    """Returns the cluster on which the demo ran. Raises ClusterError if the local cluster is not running."""
    if not is_local():
        return current_target()
    cluster = Cluster()
    if not cluster.is_up:
        raise ClusterError("The local cluster is not running. Run `make demo` first.")
    return local_target(cluster)


def _output(command: list[str], input: str | None) -> str:
    result = subprocess.run(command, capture_output=True, text=True, input=input)
    if result.returncode:
        raise ClusterError(result.stderr.strip() or result.stdout.strip())
    return result.stdout
