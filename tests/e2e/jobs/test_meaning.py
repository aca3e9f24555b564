"""Near-duplicates by meaning, in a real pod. No other preflight needs torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from devcluster import Cluster
from tests.e2e.tenant import Tenant, gpus_asked_for, message
from tests.integration.finetune_trainer.as_the_pod_runs.inputs import nonsense, save_sentence_model, twins
from tests.integration.jobs import Job


@contextmanager
def started(tenant: Tenant, cluster: Cluster) -> Iterator[dict[str, Job]]:
    with TemporaryDirectory() as folder:
        save_sentence_model(Path(folder))
        for file in (path for path in Path(folder).rglob("*") if path.is_file()):
            tenant.s3.upload_file(str(file), "models", f"sentence-model/{file.relative_to(folder)}")
    train = tenant.put_rows("twins.jsonl", [*nonsense(40), *twins(10)])
    wish = {"near": "Drop", "embeddingModel": {"uri": "s3://models/sentence-model"}, "threshold": 0.999}
    yield {"meaning": tenant.create("meaning", train, dataset={"train": [{"uri": train}], "deduplicate": wish})}


def test_a_sentence_model_from_s3_drops_rows_with_the_same_meaning(tenant: Tenant, jobs: dict[str, Job]) -> None:
    status = tenant.end_of(jobs["meaning"])

    assert status["state"] == "Complete", message(status)
    assert (status["preflight"]["rows"], status["preflight"]["nearDuplicates"]) == (60, 10)
    assert status["preflight"]["splits"] == {"train": 40, "validation": 0, "test": 10}
    assert gpus_asked_for(jobs["meaning"]) == ["a1"]
