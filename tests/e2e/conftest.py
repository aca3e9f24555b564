"""The whole cluster with the operator from its chart, S3 with a tiny model in it, and a tenant's namespace."""

import json
from pathlib import Path
from typing import Any

import boto3
import pytest

from devcluster import Cluster, images
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


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The operator, running as the Deployment the chart makes."""
    images_of_chart = {"image": _image(images.OPERATOR_IMAGE), "trainerImage": _image(images.TRAINER_IMAGE)}
    values = {**images_of_chart, "kueue": {"enabled": True}}
    release = ["finetune-operator", str(CHART), "--namespace", SYSTEM, "--create-namespace"]
    path = cluster.folder / "state" / "values.json"
    path.write_text(json.dumps(values))
    cluster.helm("install", *release, "--values", str(path), "--wait", "--timeout", "2m")
    return cluster


def _image(reference: str) -> dict[str, str]:
    repository, tag = reference.rsplit(":", 1)
    return {"repository": repository, "tag": tag}


@pytest.fixture(scope="session")
def s3(cluster: Cluster) -> Any:
    """A client that may do everything, and every bucket."""
    keys = cluster.s3_keys()
    client = boto3.client(
        "s3",
        endpoint_url=cluster.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
    )
    for bucket in BUCKETS:
        client.create_bucket(Bucket=bucket)
    return client


@pytest.fixture(scope="session")
def tiny_model(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a randomly initialised Llama with a chat template: learning is not the point of what uses it."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tokenizer(folder)
    save_model(folder)
    for file in folder.iterdir():
        s3.upload_file(str(file), "models", f"tiny/{file.name}")
    return "s3://models/tiny"


@pytest.fixture(scope="session")
def tenant(installed: Cluster, s3: Any, tiny_model: str) -> Tenant:
    """A team's namespace that enforces the restricted Pod Security Standard, with the team's Secrets."""
    kube = Kube(installed.kubeconfig)
    kube.apply(f"{PROFILES}/{PROFILE}", _profile(installed.s3_endpoint))
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM, "labels": labels}}
    installed.kubectl("apply", "-f", "-", input=json.dumps(namespace))
    keys = {
        "s3": installed.s3_keys("admin"),
        "s3-reader": installed.s3_keys("reader"),
        "s3-wrong": S3Keys("NOBODY", "nothing"),
    }
    for name, pair in keys.items():
        installed.kubectl("apply", "-f", "-", input=secret_manifest(pair, name, TEAM))
    return Tenant(kube, TEAM, s3, tiny_model)


def _profile(endpoint: str) -> Object:
    storages = [
        {"buckets": [pattern], "endpoint": endpoint, "credentialsSecretName": secret}
        for pattern, secret in SECRETS.items()
    ]
    trainer = {"image": images.TRAINER_IMAGE, "allowCPU": True}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.PROFILE_KIND,
        "metadata": {"name": PROFILE},
        "spec": {"trainer": trainer, "gpuTypes": [{"name": "any"}], "storages": storages},
    }
