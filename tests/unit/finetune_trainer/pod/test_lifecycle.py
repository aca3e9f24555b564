"""The lifecycle rules of docs/install.md, on a real S3 server that applies them."""

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import S3
from tests.unit.finetune_trainer.storage.test_job_storage import JOB, bundle

GUIDE = Path(__file__).parents[4] / "docs" / "install.md"
LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture
def rules() -> list[dict[str, Any]]:
    """The rules in the guide."""
    text = GUIDE.read_text()
    beginning = text.index('    {\n      "Rules": [')
    found: list[dict[str, Any]] = json.loads(text[beginning : text.index("\n    }\n", beginning) + 6])["Rules"]
    return found


def test_the_service_accepts_all_rules_of_the_guide(s3: S3, rules: list[dict[str, Any]]) -> None:
    bucket = s3.bucket(f"rules-{uuid.uuid4().hex[:12]}")
    s3.client().put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    kept = s3.client().get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert [rule["ID"] for rule in kept] == [rule["ID"] for rule in rules]
    assert kept[0] == rules[0]


def test_the_rule_deletes_temporary_objects_of_every_job_and_no_results(s3: S3, rules: list[dict[str, Any]]) -> None:
    bucket = s3.bucket(f"test-{uuid.uuid4().hex[:12]}")
    storages = [{"buckets": ["test-*"], "endpoint": s3.endpoint, "credentialsSecretName": "owner"}]
    for team in ("a", "deep/b"):
        folder = f"s3://{bucket}/{team}"
        storage = open_storage(bundle(folder, storages, JOB), s3.secrets_dir)
        for name in ("out/.work/0123/kept/trained-pod/weights", "out/adapter/weights"):
            storage.write_bytes(f"{folder}/{name}", b"1")
    # No day passes in a test, so the rule has a date instead.
    rule = rules[0] | {"Expiration": {"Date": LONG_AGO}}
    s3.client().put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    apply_rules(s3)
    left = [item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert left == ["a/out/adapter/weights", "deep/b/out/adapter/weights"]


def apply_rules(s3: S3) -> None:
    """Makes SeaweedFS look through all buckets once."""
    options = dict(str(option).lstrip("-").split("=", 1) for option in s3.server.args[1:] if "=" in str(option))
    master, service = (f"127.0.0.1:{options[name]}" for name in ("master.port", "s3.port.grpc"))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "weed"), "shell", f"-master={master}.{options['master.port.grpc']}"],
        input=f"s3.lifecycle.run-shard -shards 0-15 -s3 {service} -runtime 30s\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "complete" in done.stdout, done.stdout + done.stderr
