"""Near-duplicates by meaning, in a real pod. No other preflight needs torch."""

from pathlib import Path

from tests.e2e.tenant import Tenant, gpus_asked_for, message
from tests.integration.finetune_trainer.as_the_pod_runs.inputs import nonsense, save_sentence_model, twins


def test_a_sentence_model_from_s3_drops_rows_with_the_same_meaning(tenant: Tenant, tmp_path: Path) -> None:
    save_sentence_model(tmp_path)
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        tenant.s3.upload_file(str(file), "models", f"sentence-model/{file.relative_to(tmp_path)}")
    train = tenant.put_rows("twins.jsonl", [*nonsense(40), *twins(10)])
    wish = {"near": "Drop", "embeddingModel": {"uri": "s3://models/sentence-model"}, "threshold": 0.999}

    job = tenant.create("meaning", train, dataset={"train": [{"uri": train}], "deduplicate": wish})
    status = tenant.end_of(job)

    assert status["state"] == "Complete", message(status)
    assert (status["preflight"]["rows"], status["preflight"]["nearDuplicates"]) == (60, 10)
    assert status["preflight"]["splits"] == {"train": 40, "validation": 0, "test": 10}
    assert gpus_asked_for(job) == ["a1"]
