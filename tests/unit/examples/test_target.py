"""The demo runs on the local cluster or on another one, and names every missing setting."""

import os
from pathlib import Path

import pytest
import yaml

from devcluster import ClusterError
from examples.demo.install import values
from examples.demo.run import MANIFEST
from examples.demo.target import Target, current_target
from finetune_api.spec.job import FineTuneJobSpec

ENVIRONMENT = {
    "S3_ENDPOINT": "https://s3.example",
    "S3_BUCKET": "mine",
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "key",
    "OPERATOR_IMAGE": "registry.example:5000/ml/finetune-operator:0.1.0",
    "TRAINER_IMAGE": "registry.example:5000/ml/finetune-trainer:0.1.0",
}


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    for tool in ("kubectl", "helm"):
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return current_target(ENVIRONMENT)


def test_a_cluster_of_ones_own_needs_an_s3_service_and_images_and_every_missing_one_is_named() -> None:
    given = {name: value for name, value in ENVIRONMENT.items() if name not in ("S3_BUCKET", "TRAINER_IMAGE")}
    with pytest.raises(ClusterError, match=r"S3_BUCKET .*\n.*TRAINER_IMAGE"):
        current_target(given)


def test_a_cluster_of_ones_own_needs_kubectl_and_helm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="kubectl and helm on the PATH"):
        current_target(ENVIRONMENT)


def test_a_registry_with_a_port_keeps_it(target: Target) -> None:
    assert values(target)["image"] == {"repository": "registry.example:5000/ml/finetune-operator", "tag": "0.1.0"}


def test_an_image_without_a_tag_is_named_in_the_error(target: Target) -> None:
    wrong = current_target({**ENVIRONMENT, "TRAINER_IMAGE": "registry.example:5000/trainer"})
    with pytest.raises(ClusterError, match=r"registry\.example:5000/trainer"):
        values(wrong)


def test_the_example_is_a_valid_job_in_the_buckets_of_either(target: Target) -> None:
    for text in (MANIFEST.read_text(), target.in_bucket(MANIFEST.read_text())):
        spec = FineTuneJobSpec.model_validate(yaml.safe_load(text)["spec"])
    assert spec.output.uri == "s3://mine/acme-results/tickets"
