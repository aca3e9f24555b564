"""What the metrics count, and that their names follow the rules of Prometheus."""

import asyncio
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.world import World
from finetune_operator.process import metrics
from finetune_operator.process.queue import WorkQueue
from finetune_operator.store.store import JOB, Store
from tests.unit.finetune_operator.plans import state
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import NOW, PROFILE, attempt, pod, validated, with_status


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"{metrics.PREFIX}_{name}", labels) or 0.0


def ended(exit_code: int) -> tuple[World, Plan]:
    hour = timedelta(hours=1)
    ran = pod("Failed" if exit_code else "Succeeded", exit_code=exit_code, started=NOW - hour, finished=NOW)
    gpu = PROFILE.gpu_types[0].model_copy(update={"price_per_hour": "2.50"})
    priced = PROFILE.model_copy(update={"gpu_types": [gpu]})
    run = attempt(ran, failed=bool(exit_code), succeeded=not exit_code)
    world = validated(attempts={1: run}, profile=priced)
    return world, reconcile(world, NOW)


@pytest.mark.parametrize("exit_code", [0, 29])
def test_the_end_of_a_job_counts_its_gpu_time_its_cost_and_its_reason(exit_code: int) -> None:
    names = [("gpu_seconds_total", {"namespace": "team"}), ("gpu_cost_total", {"namespace": "team"})]
    names.append(("jobs_failed_total", {"reason": "LossDiverged"}))
    before = [value(name, **labels) for name, labels in names]
    metrics.count_written(*ended(exit_code))
    after = [value(name, **labels) for name, labels in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([3600.0, 2.5, float(exit_code > 0)])


def test_a_failed_job_counts_once_also_if_its_status_is_written_again() -> None:
    world, plan = ended(29)
    metrics.count_written(world, plan)
    before = value("jobs_failed_total", reason="LossDiverged")
    again = replace(with_status(world, plan), generation=2)
    metrics.count_written(again, reconcile(again, NOW))
    assert value("jobs_failed_total", reason="LossDiverged") == before


def test_what_an_interrupted_attempt_has_used_counts_once_and_at_its_end() -> None:
    world, plan = ended(33)
    before = value("gpu_seconds_total", namespace="team")
    metrics.count_written(world, plan)
    assert state(plan) == "Pending"
    assert value("gpu_seconds_total", namespace="team") - before == 3600.0

    after = with_status(world, plan)
    metrics.count_written(after, reconcile(after, NOW))
    assert value("gpu_seconds_total", namespace="team") - before == 3600.0


def test_a_plan_that_ends_nothing_counts_nothing() -> None:
    before = value("gpu_seconds_total", namespace="team")
    metrics.count_written(validated(), reconcile(validated(), NOW))
    assert value("gpu_seconds_total", namespace="team") == before


def test_the_store_and_the_queue_are_read_at_the_scrape() -> None:
    async def story() -> str:
        store, queue, registry = Store(lambda key: None), WorkQueue(), CollectorRegistry()
        metrics.observe(store, queue, registry)
        store.put(JOB, objects.job("a", name="a", status={"state": "Running"}))
        store.put(JOB, objects.job("b", name="b"))
        queue.add(("team", "a"))
        return generate_latest(registry).decode()

    text = asyncio.run(story())
    assert 'finetune_operator_jobs{state="Running"} 1.0' in text
    assert 'finetune_operator_store_objects{kind="FineTuneJob"} 2.0' in text
    assert "finetune_operator_queue_depth 1.0" in text


def test_every_metric_is_explained_and_has_a_unit_and_few_labels() -> None:
    store, queue = Store(lambda key: None), WorkQueue()
    registry = CollectorRegistry()
    metrics.observe(store, queue, registry)
    text = generate_latest(REGISTRY).decode() + generate_latest(registry).decode()
    ours = [family for family in text_string_to_metric_families(text) if family.name.startswith(metrics.PREFIX)]
    assert len(ours) > 12
    for family in ours:
        assert family.documentation.endswith("."), family.name
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= {"verb", "code", "kind", "cause", "state", "reason", "namespace", "le"}, family.name
        if "duration" in family.name or "wait" in family.name:
            assert family.name.endswith("_seconds")


def test_the_docs_list_every_metric_and_no_other() -> None:
    registry = CollectorRegistry()
    metrics.observe(Store(lambda key: None), WorkQueue(), registry)
    families = [*REGISTRY.collect(), *registry.collect()]
    ours = [family for family in families if family.name.startswith(metrics.PREFIX)]
    names = {family.name.removeprefix(f"{metrics.PREFIX}_") + "_total" * (family.type == "counter") for family in ours}
    page = Path(__file__).parents[4].joinpath("docs", "scale.md").read_text()
    table = page.split("### Metrics")[1].split("###")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == names
    alerts = set(re.findall(rf"{metrics.PREFIX}_(\w+)", page))
    assert alerts
    assert alerts <= names
