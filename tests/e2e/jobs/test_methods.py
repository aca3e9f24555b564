"""Every method, and rows of every kind of file, in real pods."""

import csv
import gzip
import io

from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums


def test_full_fine_tuning_on_texts_publishes_a_whole_model(tenant: Tenant) -> None:
    rows = tenant.put_rows("texts.jsonl", [{"text": f"Note {row['q']} {row['a']}"} for row in sums(40)])
    dataset = {"train": [{"uri": rows, "format": "Text"}]}

    status = tenant.end_of(tenant.create("texts", rows, dataset=dataset, method={"type": "Full"}))

    assert status["state"] == "Complete", message(status)
    assert status["resolved"]["method"] == "Full"
    assert "texts/model/model.safetensors" in tenant.objects("results", "texts/")


def test_an_existing_adapter_is_evaluated_on_new_rows_without_training(tenant: Tenant) -> None:
    columns, table = {"columns": SUMS_COLUMNS}, io.StringIO()
    writer = csv.DictWriter(table, ["q", "a"])
    writer.writeheader()
    writer.writerows(sums(60))
    tenant.s3.put_object(Bucket="data", Key="drift/train.csv.gz", Body=gzip.compress(table.getvalue().encode()))
    train = {"train": [{"uri": "s3://data/drift/train.csv.gz", **columns}]}
    first = tenant.end_of(tenant.create("drift", "", dataset=train))
    assert first["state"] == "Complete", message(first)

    test = {"test": [{"uri": tenant.put_rows("drift/new.jsonl", sums(90)[60:]), **columns}]}
    method = {"type": "None", "lora": {"from": first["artifacts"]["adapter"]}}
    status = tenant.end_of(tenant.create("drift-later", "", dataset={**train, **test}, method=method))

    assert status["state"] == "Complete", message(status)
    assert (status["resolved"]["method"], status["resolved"]["totalSteps"]) == ("None", 0)
    assert status["evaluation"]["rows"] == 4
