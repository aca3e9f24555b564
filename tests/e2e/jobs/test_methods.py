"""Every method, and rows of every kind of file, in real pods."""

import csv
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devcluster import Cluster
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job

pytestmark = pytest.mark.thorough

DRIFT = {"train": [{"uri": "s3://data/drift/train.csv.gz", "columns": SUMS_COLUMNS}]}


@contextmanager
def started(tenant: Tenant, cluster: Cluster) -> Iterator[dict[str, Job]]:
    rows = tenant.put_rows("texts.jsonl", [{"text": f"Note {row['q']} {row['a']}"} for row in sums(40)])
    texts = {"train": [{"uri": rows, "format": "Text"}]}
    table = io.StringIO()
    writer = csv.DictWriter(table, ["q", "a"])
    writer.writeheader()
    writer.writerows(sums(60))
    tenant.s3.put_object(Bucket="data", Key="drift/train.csv.gz", Body=gzip.compress(table.getvalue().encode()))
    yield {
        "texts": tenant.create("texts", rows, dataset=texts, method={"type": "Full"}),
        "drift": tenant.create("drift", "", dataset=DRIFT),
    }


def test_full_fine_tuning_on_texts_publishes_a_whole_model(tenant: Tenant, jobs: dict[str, Job]) -> None:
    status = tenant.end_of(jobs["texts"])

    assert status["state"] == "Complete", message(status)
    assert status["resolved"]["method"] == "Full"
    assert "texts/model/model.safetensors" in tenant.objects("results", "texts/")


def test_an_existing_adapter_is_evaluated_on_new_rows_without_training(tenant: Tenant, jobs: dict[str, Job]) -> None:
    first = tenant.end_of(jobs["drift"])
    assert first["state"] == "Complete", message(first)

    test = {"test": [{"uri": tenant.put_rows("drift/new.jsonl", sums(90)[60:]), "columns": SUMS_COLUMNS}]}
    method = {"type": "None", "lora": {"from": first["artifacts"]["adapter"]}}
    status = tenant.end_of(tenant.create("drift-later", "", dataset={**DRIFT, **test}, method=method))

    assert status["state"] == "Complete", message(status)
    assert (status["resolved"]["method"], status["resolved"]["totalSteps"]) == ("None", 0)
    assert status["evaluation"]["rows"] == 4
