"""A FineTuneJob from apply to Complete, in real pods, with each format of rows and each method."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devcluster import Cluster
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, gpus_asked_for, message, sums, truth
from tests.integration.jobs import Job

CONVERSATIONS = [
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"Hello {i}"},
            {"role": "assistant", "content": f"Hi {i}"},
        ]
    }
    for i in range(30)
]
TASKS = [{"instruction": "Double it.", "input": f"{i}", "output": f"{2 * i}"} for i in range(30)]
OF_QLORA = {"conversations": ("conversations.json", CONVERSATIONS), "tasks": ("tasks.jsonl", TASKS)}


@contextmanager
def started(tenant: Tenant, cluster: Cluster) -> Iterator[dict[str, Job]]:
    train = tenant.put_rows("sums/part-1.jsonl", sums(60))
    tenant.put_rows("sums/part-2.jsonl", [*sums(5), *({"q": f"And {i}?", "a": f"{i}."} for i in range(40))])
    own = {part: tenant.put_rows(f"own/{part}.jsonl", sums(rows)) for part, rows in (("train", 40), ("test", 10))}
    datasets = {
        "sums": {"train": [{"uri": train.replace("part-1", "*"), "columns": SUMS_COLUMNS}]},
        "own-test": {part: [{"uri": uri, "columns": SUMS_COLUMNS}] for part, uri in own.items()},
    }
    made = {name: tenant.create(name, train, dataset=dataset) for name, dataset in datasets.items()}
    qlora = {"type": "QLoRA", "lora": {"r": 4}}
    yield made | {name: tenant.create(name, tenant.put_rows(*rows), method=qlora) for name, rows in OF_QLORA.items()}


def test_rows_with_mapped_columns_become_a_published_adapter(
    tenant: Tenant, installed: Cluster, jobs: dict[str, Job], tmp_path: Path
) -> None:
    job = jobs["sums"]
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


@pytest.mark.parametrize("name", OF_QLORA)
def test_qlora_learns_from_conversations_and_tasks(tenant: Tenant, jobs: dict[str, Job], name: str) -> None:
    status = tenant.end_of(jobs[name])

    assert status["state"] == "Complete", message(status)
    assert status["resolved"]["method"] == "QLoRA"


def test_rows_of_a_separate_test_set_are_not_trained_on(tenant: Tenant, jobs: dict[str, Job]) -> None:
    status = tenant.end_of(jobs["own-test"])

    assert status["state"] == "Complete", message(status)
    assert status["preflight"]["splits"] == {"train": 30, "validation": 0, "test": 10}
