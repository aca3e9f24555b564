"""What a tenant can get wrong outside the manifest: each ends with its own reason before a GPU is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from devcluster import Cluster
from tests.e2e.tenant import Tenant, gpus_asked_for, message, sums, truth
from tests.integration.jobs import Job

OCCUPIED = "occupied"
GOOD = {"prompt": "What?", "completion": "That."}
HOLED = [{**GOOD, "prompt": f"What is {i}?"} for i in range(40)]
HOLED[16] = {"prompt": "What is 16?"}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no-bucket": ({"train": "s3://nowhere/rows.jsonl"}, "DatasetNotFound", "nowhere"),
    "no-key": ({"train": "s3://data/nothing.jsonl"}, "DatasetNotFound", "s3://data/nothing.jsonl"),
    "no-match": ({"train": "s3://data/nothing/*.jsonl"}, "DatasetNotFound", "s3://data/nothing/*.jsonl"),
    "wrong-keys": ({"train": "s3://denied-data/rows.jsonl"}, "StorageAccessDenied", "s3-wrong"),
    "no-secret": ({"train": "s3://unknown-data/rows.jsonl"}, "StorageAccessDenied", "s3-missing"),
    "row-17": ({"rows": HOLED}, "DatasetInvalid", "s3://data/bad/row-17.jsonl line 17: completion is missing"),
    "empty": ({"rows": []}, "DatasetInvalid", "s3://data/bad/empty.jsonl"),
    "odd-columns": ({"rows": sums(5)}, "DatasetInvalid", "columns q, a"),
    "read-only-output": (
        {"rows": [{**GOOD, "prompt": f"{i}"} for i in range(20)], "output": {"uri": "s3://readonly-results/x"}},
        "OutputNotWritable",
        "s3://readonly-results/x",
    ),
    "no-model": ({"rows": [GOOD], "model": {"uri": "s3://models/nothing"}}, "ModelNotFound", "s3://models/nothing"),
    "no-weights": ({"rows": [GOOD], "model": {"uri": "s3://models/bare"}}, "ModelUnsupported", "safetensors"),
    "no-such-module": (
        {
            "rows": [{**GOOD, "prompt": f"{i}"} for i in range(20)],
            "method": {"lora": {"targetModules": ["q_proj", "query_key_value"]}},
        },
        "SpecInvalid",
        "query_key_value",
    ),
}


@contextmanager
def started(tenant: Tenant, cluster: Cluster) -> Iterator[dict[str, Job]]:
    tenant.s3.copy_object(Bucket="models", Key="bare/config.json", CopySource="models/tiny/config.json")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        tenant.s3.copy_object(Bucket="models", Key=f"bare/{file}", CopySource=f"models/tiny/{file}")
    made = {}
    for name, (parts, _, _) in CASES.items():
        spec = dict(parts)
        rows = spec.pop("rows", None)
        train = spec.pop("train", None) or tenant.put_rows(f"bad/{name}.jsonl", rows)
        made[name] = tenant.create(f"bad-{name}", train, **spec)
    occupied = tenant.put_rows("occupied.jsonl", [{**GOOD, "prompt": f"{i}"} for i in range(20)])
    yield {**made, OCCUPIED: tenant.create(OCCUPIED, occupied)}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_job_fails_with_its_reason_and_never_requests_a_gpu(
    tenant: Tenant, jobs: dict[str, Job], name: str
) -> None:
    _, reason, named = CASES[name]

    status = tenant.end_of(jobs[name])

    told = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert (told["Failed"], told["Validated"]) == (("True", reason), ("False", reason)), message(status)
    assert named in message(status)
    assert gpus_asked_for(jobs[name]) == []


def test_an_output_with_results_of_another_job_is_refused(tenant: Tenant, jobs: dict[str, Job]) -> None:
    assert tenant.end_of(jobs[OCCUPIED])["state"] == "Complete"

    second = tenant.create("occupying", "s3://data/occupied.jsonl", output={"uri": "s3://results/occupied"})
    status = tenant.end_of(second)

    assert truth(status)["Validated"] == "False"
    assert "team/occupied" in message(status)
    assert gpus_asked_for(second) == []
