"""Where the demo runs: on the local cluster, or on the one kubectl points at (CLUSTER=current)."""

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
"""What the demo leaves."""
NAMESPACE = "finetune-demo"
"""The tenant's namespace."""
SYSTEM_NAMESPACE = "finetune-system"
JOB = "tickets"
NEEDED = {
    "S3_ENDPOINT": "address of the S3 service, as the pods reach it",
    "S3_BUCKET": "a bucket for the demo's model, rows and results",
    "AWS_ACCESS_KEY_ID": "keys that may read and write there",
    "AWS_SECRET_ACCESS_KEY": "",
    "OPERATOR_IMAGE": "the operator's image, REPOSITORY:TAG",
    "TRAINER_IMAGE": "the trainer's image, REPOSITORY:TAG",
}
"""What CLUSTER=current has to be told through the environment."""


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
    """What the demo's s3:// URIs begin with: all buckets of the service, or one."""
    release: str
    """Name of the chart's release."""
    operator_image: str
    trainer_image: str

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """What `kubectl ARGUMENTS` prints. Raises ClusterError with what it says instead."""
        return _output([*self.kubectl_command, *arguments], input)

    def tenant(self, *arguments: str, input: str | None = None) -> str:
        """The same in the tenant's namespace."""
        return self.kubectl("--namespace", NAMESPACE, *arguments, input=input)

    def helm(self, *arguments: str) -> str:
        """What `helm ARGUMENTS` prints. Raises ClusterError with what it says instead."""
        return _output([*self.helm_command, *arguments], None)

    def in_bucket(self, text: str) -> str:
        """`text` with the example's S3 URIs as they are here."""
        return text.replace("s3://", self.root)


def local_target(cluster: Cluster) -> Target:
    """The local cluster, which has to be up, with its own S3."""
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
    """The cluster of the current context. Raises ClusterError naming every variable and tool that is missing."""
    missing = [name for name in NEEDED if not environment.get(name)]
    if missing:
        explained = "\n".join(f"  {name}  {NEEDED[name]}".rstrip() for name in missing)
        raise ClusterError(f"CLUSTER=current needs these environment variables:\n{explained}")
    tools = [tool for tool in ("kubectl", "helm") if not shutil.which(tool)]
    if tools:
        raise ClusterError(f"CLUSTER=current needs {' and '.join(tools)} on the PATH.")
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
    """Whether $CLUSTER means the local cluster: `local`, the default, or `current`."""
    cluster = os.environ.get("CLUSTER") or "local"
    if cluster not in ("local", "current"):
        raise ClusterError(f"CLUSTER={cluster} is neither local nor current.")
    return cluster == "local"


def running_target() -> Target:
    """Where the demo has run. Raises ClusterError where it is down."""
    if not is_local():
        return current_target()
    cluster = Cluster()
    if not cluster.is_up:
        raise ClusterError("The local cluster is down: run `make demo` first.")
    return local_target(cluster)


def _output(command: list[str], input: str | None) -> str:
    result = subprocess.run(command, capture_output=True, text=True, input=input)
    if result.returncode:
        raise ClusterError(result.stderr.strip() or result.stdout.strip())
    return result.stdout
