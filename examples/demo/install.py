"""The operator from its chart, and a namespace for the tenant: what a platform team does once."""

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
    """The definitions and the chart, installed or upgraded; returns once the operator runs. The values are left in
    `values_file`. Raises ClusterError."""
    if not target.local:
        _refuse_another_operator(target)
    values_file.write_text(json.dumps(values(target), indent=2))
    # Helm installs definitions and never changes them, so they come first.
    target.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
    target.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CHART / "crds"))
    where = ["--namespace", SYSTEM_NAMESPACE, "--create-namespace", "--values", str(values_file)]
    try:
        target.helm("upgrade", "--install", target.release, str(CHART), *where, "--wait", "--timeout", TIMEOUT)
    except ClusterError as error:
        raise ClusterError(f"helm: {error}\n{operator_log(target)}") from error


def prepare_tenant(target: Target) -> None:
    """A namespace under the `restricted` Pod Security Standard with the storage's Secret. Raises ClusterError."""
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    target.kubectl("apply", "-f", "-", input=json.dumps(namespace))
    target.kubectl("apply", "-f", "-", input=secret_manifest(target.keys, SECRET, NAMESPACE))


def values(target: Target) -> dict[str, Any]:
    """The chart's values: our images, our storage, and training on the CPU where there is no GPU."""
    storage = {"buckets": ["*"], "endpoint": target.endpoint, "region": target.region, "credentialsSecretName": SECRET}
    return {
        "image": _image(target.operator_image),
        "trainerImage": _image(target.trainer_image),
        "profile": {"allowCPU": True, "storages": [storage]},
        # The development image is the working tree: a changed one needs a new pod, and nothing else would tell.
        "podAnnotations": {"finetune.dev/source": _source_digest()} if target.local else {},
    }


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    if not repository or "/" in tag:
        raise ClusterError(f"{reference!r} is no image with a tag: write REPOSITORY:TAG.")
    return {"repository": repository, "tag": tag}


def _source_digest() -> str:
    files = sorted(file for folder in SOURCES for file in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _refuse_another_operator(target: Target) -> None:
    ours = target.helm("list", "--namespace", SYSTEM_NAMESPACE, "--filter", f"^{target.release}$", "--short").strip()
    definition = "finetunejobs.finetune.dev"
    if not ours and target.kubectl("get", "customresourcedefinition", definition, "--ignore-not-found").strip():
        raise ClusterError(
            "This cluster has a finetune-operator that the demo did not install, and would change. "
            "Apply examples/tickets/finetunejob.yaml with your own URIs instead."
        )
