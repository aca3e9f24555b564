"""A FineTuneJob from apply to Complete, in real pods, with each format of rows and each method."""

import hashlib
import json
from pathlib import Path

import pytest

from devcluster import Cluster
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, gpus_asked_for, message, sums, truth


def test_rows_with_mapped_columns_become_a_published_adapter(
    tenant: Tenant, installed: Cluster, tmp_path: Path
) -> None:
    train = tenant.put_rows("sums/part-1.jsonl", sums(60))
    tenant.put_rows("sums/part-2.jsonl", [*sums(5), *({"q": f"And {i}?", "a": f"{i}."} for i in range(40))])
    sources = {"train": [{"uri": train.replace("part-1", "*"), "columns": SUMS_COLUMNS}]}

    job = tenant.create("sums", train, dataset=sources)
    status = tenant.end_of(job)

    assert truth(status) == {
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Complete": "True",
        "Validated": "True",
        "Trained": "True",
        "Evaluated": "True",
    }, message(status)
    assert installed.kubectl("wait", "-n", tenant.namespace, "ftj/sums", "--for=condition=Complete", "--timeout=60s")
    assert (status["preflight"]["rows"], status["preflight"]["duplicates"]) == (105, 5)
    assert status["preflight"]["splits"] == {"train": 80, "validation": 0, "test": 20}
    assert (status["training"]["step"], status["training"]["device"]) == (3, "cpu")
    assert set(status["evaluation"]) >= {"base", "tuned", "verdict"}
    assert gpus_asked_for(job) == ["a1"]
    assert status["attempts"][0]["reason"] == "Succeeded"
    assert status["attempts"][0]["nodeName"] == "node"
    check_published(tenant, "sums", status["artifacts"]["digest"], tmp_path)


def check_published(tenant: Tenant, prefix: str, digest: str, folder: Path) -> None:
    """Every file of the manifest is there as it says, the work prefix is gone, and PEFT loads the adapter."""
    manifest = tenant.s3.get_object(Bucket="results", Key=f"{prefix}/manifest.json")["Body"].read()
    assert hashlib.sha256(manifest).hexdigest() == digest
    files = {file["path"]: file for file in json.loads(manifest)["files"]}
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "report.html"} <= set(files)
    for path, file in files.items():
        data = tenant.s3.get_object(Bucket="results", Key=f"{prefix}/{path}")["Body"].read()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    assert sorted(tenant.objects("results", f"{prefix}/")) == sorted(f"{prefix}/{p}" for p in [*files, "manifest.json"])
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(folder / "adapter").base_model_name_or_path == tenant.model


@pytest.mark.parametrize(
    ("name", "key", "rows"),
    [
        (
            "conversations",
            "conversations.json",
            [
                {
                    "messages": [
                        {"role": "system", "content": "Be short."},
                        {"role": "user", "content": f"Hello {i}"},
                        {"role": "assistant", "content": f"Hi {i}"},
                    ]
                }
                for i in range(30)
            ],
        ),
        (
            "tasks",
            "tasks.jsonl",
            [{"instruction": "Double it.", "input": f"{i}", "output": f"{2 * i}"} for i in range(30)],
        ),
    ],
)
def test_qlora_learns_from_conversations_and_tasks(tenant: Tenant, name: str, key: str, rows: list[dict]) -> None:  # type: ignore[type-arg]
    job = tenant.create(name, tenant.put_rows(key, rows), method={"type": "QLoRA", "lora": {"r": 4}})

    status = tenant.end_of(job)

    assert status["state"] == "Complete", message(status)
    assert status["resolved"]["method"] == "QLoRA"


def test_rows_of_a_separate_test_set_are_not_trained_on(tenant: Tenant) -> None:
    train, test = tenant.put_rows("own/train.jsonl", sums(40)), tenant.put_rows("own/test.jsonl", sums(10))
    sources = {
        "train": [{"uri": train, "columns": SUMS_COLUMNS}],
        "test": [{"uri": test, "columns": SUMS_COLUMNS}],
    }

    status = tenant.end_of(tenant.create("own-test", train, dataset=sources))

    assert status["state"] == "Complete", message(status)
    assert status["preflight"]["splits"] == {"train": 30, "validation": 0, "test": 10}
