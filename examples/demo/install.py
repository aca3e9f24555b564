"""Installs the operator's chart and creates the tenant's namespace. A platform team does this once."""

import hashlib
import json
from pathlib import Path
from typing import Any

from devcluster import ClusterError
from devcluster.images import SOURCES
from devcluster.storage import secret_manifest
from examples.demo.failure import operator_log
from examples.demo.target import NAMESPACE, ROOT, SYSTEM_NAMESPACE, Target

CHART = ROOT / "charts" / "finetune-operator"
SECRET = "s3-credentials"
TIMEOUT = "3m"


def install_operator(target: Target, values_file: Path) -> None:
    """Installs or upgrades the CRDs and the chart, and returns when the operator runs.

    Writes the chart's values to `values_file`. Raises ClusterError."""
    if not target.local:
        _refuse_another_operator(target)
    values_file.write_text(json.dumps(values(target), indent=2))
    # Helm installs CRDs but never upgrades them, so they are applied first.
    target.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
    target.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CHART / "crds"))
    where = ["--namespace", SYSTEM_NAMESPACE, "--create-namespace", "--values", str(values_file)]
    try:
        target.helm("upgrade", "--install", target.release, str(CHART), *where, "--wait", "--timeout", TIMEOUT)
    except ClusterError as error:
        raise ClusterError(f"helm: {error}\n{operator_log(target)}") from error


def prepare_tenant(target: Target) -> None:
    """Creates a namespace with the `restricted` Pod Security Standard and the Secret with the S3 keys.

    Raises ClusterError."""
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    target.kubectl("apply", "-f", "-", input=json.dumps(namespace))
    target.kubectl("apply", "-f", "-", input=secret_manifest(target.keys, SECRET, NAMESPACE))


def values(target: Target) -> dict[str, Any]:
    """Returns the chart's values: the images, the storage, and training on the CPU if there is no GPU."""
    storage = {"buckets": ["*"], "endpoint": target.endpoint, "region": target.region, "credentialsSecretName": SECRET}
    return {
        "image": _image(target.operator_image),
        "trainerImage": _image(target.trainer_image),
        "profile": {"allowCPU": True, "storages": [storage]},
        # The development image mounts the working tree. Changed code needs a new pod, so pods get the code's digest.
        "podAnnotations": {"finetune.dev/source": _source_digest()} if target.local else {},
    }


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    if not repository or "/" in tag:
        raise ClusterError(f"{reference!r} is not an image with a tag. Write it as REPOSITORY:TAG.")
    return {"repository": repository, "tag": tag}


def _source_digest() -> str:
    files = sorted(file for folder in SOURCES for file in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _refuse_another_operator(target: Target) -> None:
    ours = target.helm("list", "--namespace", SYSTEM_NAMESPACE, "--filter", f"^{target.release}$", "--short").strip()
    definition = "finetunejobs.finetune.dev"
    if not ours and target.kubectl("get", "customresourcedefinition", definition, "--ignore-not-found").strip():
        raise ClusterError(
            "This cluster already has a finetune-operator that the demo did not install. The demo would change it. "
            "Apply examples/tickets/finetunejob.yaml with your own URIs instead."
        )
