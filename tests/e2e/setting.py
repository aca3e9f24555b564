"""Makes what tests of the whole cluster need: the operator from its chart, S3 with a tiny model, a tenant."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3

from devcluster import Cluster, images
from devcluster.namespaces import FIRST
from devcluster.storage import S3Keys, secret_manifest
from finetune_api import names
from tests.e2e.tenant import PROFILE, Tenant
from tests.integration.kube import PROFILES, Kube, Object
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer

CHART = Path(__file__).parents[2] / "charts" / "finetune-operator"
SYSTEM, TEAM = "finetune-system", "team"
SECRETS = {"readonly-*": "s3-reader", "denied-*": "s3-wrong", "unknown-*": "s3-missing", "*": "s3"}
"""Which Secret the profile names for which buckets. s3-missing is made by nobody."""
BUCKETS = ("models", "data", "results", "readonly-results", "denied-data", "unknown-data")


def install_operator(cluster: Cluster) -> None:
    """Installs the operator as the Deployment that the chart makes, or gives it these values again after another test
    has installed over it. Waits until it is ready."""
    first_node = {"kubernetes.io/hostname": FIRST.name}  # where a test takes another node away, the operator stays
    operator, trainer = _image(images.OPERATOR_IMAGE), _image(images.TRAINER_IMAGE)
    values = {"image": operator, "trainerImage": trainer, "nodeSelector": first_node, "kueue": {"enabled": True}}
    release = ["finetune-operator", str(CHART), "--namespace", SYSTEM, "--create-namespace"]
    path = cluster.folder / "state" / "values.json"
    path.write_text(json.dumps(values))
    cluster.helm("upgrade", "--install", *release, "--values", str(path), "--wait", "--timeout", "2m")


def s3_client(cluster: Cluster) -> Any:
    """Returns a client that may do everything. Creates every bucket."""
    keys = cluster.s3_keys()
    client = boto3.client(
        "s3",
        endpoint_url=cluster.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
    )
    for bucket in BUCKETS:
        # The client repeats a request that was carried out and not answered, as happens on a busy machine.
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
    return client


def put_tiny_model(s3: Any, folder: Path) -> str:
    """Returns the URI of a randomly initialised Llama with a chat template: learning is not the point of what uses it.

    `folder`: an empty one, for its files."""
    save_tokenizer(folder)
    save_model(folder)
    for file in folder.iterdir():
        s3.upload_file(str(file), "models", f"tiny/{file.name}")
    return "s3://models/tiny"


def put_wide_model(s3: Any, folder: Path) -> str:
    """Returns the URI of a model of 19 million parameters. Training all of them needs some 150 MiB less on each of two
    GPUs than on one.

    `folder`: an empty one, for its files."""
    save_tokenizer(folder)
    save_model(folder, hidden_size=384, intermediate_size=1536, num_hidden_layers=8)
    for file in folder.iterdir():
        s3.upload_file(str(file), "models", f"wide/{file.name}")
    return "s3://models/wide"


def make_tenant(
    cluster: Cluster, s3: Any, model: str, endpoint: str, trainer_image: str = images.TRAINER_IMAGE, team: str = TEAM
) -> Tenant:
    """Makes a profile with S3 at `endpoint`, and a team's namespace that enforces the restricted Pod Security Standard,
    with the team's Secrets. A team other than TEAM has a profile of its own, of the team's name."""
    kube = Kube(cluster.kubeconfig)
    own = PROFILE if team == TEAM else team
    kube.apply(f"{PROFILES}/{own}", {**profile(endpoint, trainer_image), "metadata": {"name": own}})
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team, "labels": labels}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(namespace))
    keys = {
        "s3": cluster.s3_keys("admin"),
        "s3-reader": cluster.s3_keys("reader"),
        "s3-wrong": S3Keys("NOBODY", "nothing"),
    }
    for name, pair in keys.items():
        cluster.kubectl("apply", "-f", "-", input=secret_manifest(pair, name, team))
    return Tenant(kube, team, s3, model)


def profile(endpoint: str, trainer_image: str = images.TRAINER_IMAGE, **gpu_type: Any) -> Object:
    """Returns the profile of these tests. `gpu_type`: more fields of its GPU type."""
    storages = [
        {"buckets": [pattern], "endpoint": endpoint, "credentialsSecretName": secret}
        for pattern, secret in SECRETS.items()
    ]
    trainer = {"image": trainer_image, "allowCPU": True}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.PROFILE_KIND,
        "metadata": {"name": PROFILE},
        "spec": {"trainer": trainer, "gpuTypes": [{"name": "any", **gpu_type}], "storages": storages},
    }


def _image(reference: str) -> dict[str, str]:
    repository, tag = reference.rsplit(":", 1)
    return {"repository": repository, "tag": tag}
