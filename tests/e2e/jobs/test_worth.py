"""Gates, regression sets and merged weights decide how a job ends, in real pods."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from devcluster import Cluster
from tests.e2e.tenant import END_SECONDS, SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for

WORDS = [
    f"{a}{b}" for a in ("ta", "re", "mi", "so", "lu", "ke", "po", "vi") for b in ("ran", "dol", "mek", "sit", "pur")
]


@contextmanager
def started(tenant: Tenant, cluster: Cluster) -> Iterator[dict[str, Job]]:
    rows = tenant.put_rows("worth.jsonl", sums(40))
    gates = [{"metric": "ExactMatch", "min": 0.99}, {"metric": "Loss", "max": 1000}]
    specs: dict[str, Object] = {
        "gated": {"evaluation": {"maxRows": 4, "gates": gates}},
        "merged": {"output": {"uri": "s3://results/merged", "merge": True}},
    }
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}
    yield {name: tenant.create(name, rows, dataset=dataset, **spec) for name, spec in specs.items()}


def test_a_missed_gate_fails_the_job_with_value_and_bound_and_keeps_the_results(
    tenant: Tenant, jobs: dict[str, Job]
) -> None:
    status = tenant.end_of(jobs["gated"])

    assert (status["state"], status["attempts"][0]["reason"]) == ("Failed", "EvaluationGateFailed")
    assert "ExactMatch is 0, but its gate requires at least 0.99." in message(status)
    assert [gate["passed"] for gate in status["evaluation"]["gates"]] == [False, True]
    assert "results/gated/report.html" in status["artifacts"]["report"]
    assert "gated/adapter/adapter_model.safetensors" in tenant.objects("results", "gated/")


def test_merged_weights_are_published_and_measured_again(tenant: Tenant, jobs: dict[str, Job]) -> None:
    status = tenant.end_of(jobs["merged"])

    assert status["state"] == "Complete", message(status)
    assert status["evaluation"]["merged"]["loss"] > 0
    assert "merged/merged/model.safetensors" in tenant.objects("results", "merged/")


def test_advice_reports_a_leaked_test_row_and_a_repeated_answer_before_the_job_requests_a_gpu(tenant: Tenant) -> None:
    asked = [" ".join(Random(i).sample(WORDS, 12)) for i in range(60)]
    train = tenant.put_rows("leak/train.jsonl", [{"prompt": text, "completion": "Yes."} for text in asked[:50]])
    planted = [{"prompt": text, "completion": "Yes."} for text in (asked[7].upper(), *asked[50:])]
    sources = {"train": [{"uri": train}], "test": [{"uri": tenant.put_rows("leak/test.jsonl", planted)}]}

    job = tenant.create("leak", train, dataset=sources)
    status = wait_for("the preflight", job.status, lambda s: "preflight" in s, END_SECONDS)

    advice = {item["reason"]: item["message"] for item in status["preflight"]["advice"]}
    assert {"TestRowsLeak", "OneAnswerRepeated"} <= set(advice), advice
    assert advice["TestRowsLeak"].startswith("1 of 11")
    begun = [attempt["startTime"] for attempt in status.get("attempts", []) if "startTime" in attempt]
    assert all(status["preflight"]["observedTime"] <= start for start in begun)
    tenant.kube.delete(job.path)
