"""The advice on a job whose models would write their answers for hours, because the weights are sharded."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.eight_gpus import CASES
from finetune_api.bundle import Bundle, JobIdentity
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.gpu_type import GpuType
from finetune_api.status.preflight import ADVICE_LENGTH, Advice, Resolved
from finetune_trainer.preflight import recipe
from finetune_trainer.preflight.advice.slow_answers import slow_answers
from finetune_trainer.preflight.hardware.prediction import DataSize, estimates, sized
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight.hardware.test_prediction import LORA, resolved, spec

H100 = GpuType(name="h100", memory="81559Mi", price_per_hour="2.50")
DATA = DataSize(np.full(1000, 500), np.full(1000, 100), longest=2000, answered=200, prompt=400)
BASE_ONLY = {"evaluation": {"baselines": ["Base"]}}


LLAMA_70B = CASES[1].shape()


def advice(
    nodes: int,
    gpus: int,
    gpu: GpuType = H100,
    data: DataSize = DATA,
    wish: Resolved | None = None,
    shape: ModelShape = LLAMA_70B,
    **parts: Any,
) -> str | None:
    """The message of the advice; None without one."""
    compute = {"nodes": nodes, "gpusPerNode": gpus}
    bundle = Bundle(
        job=JobIdentity(namespace="tenant", name="job", uid="1"), spec=spec(compute=compute, **parts), gpu_types=[gpu]
    )
    settings, found = sized([gpu], bundle.spec, wish or resolved(LORA), shape, data)
    given = slow_answers(bundle, found, settings, shape, data)
    assert all(each.reason == "AnswersTakeLong" and len(each.message) < ADVICE_LENGTH for each in given)
    return given[0].message if given else None


def test_answers_with_weights_that_are_gathered_over_the_network_take_hours() -> None:
    told = advice(nodes=2, gpus=8)
    assert told
    # A batch for each of five rounds: 150 tokens, for each of which 15/16 of 141 GB are sent at 3.1 GB/s.
    hours = 5 * 150 * 15 / 16 * 2 * LLAMA_70B.parameters / 3.125e9 / 3600
    assert f"for about {hours:.1f} h." in told
    assert "16 GPUs gather them over the network between 2 nodes: 42.3 s at 3.1 GB/s." in told
    ways = told.partition("What helps: ")[2]
    assert re.match(r"spec\.compute\.nodes 1 .+; spec\.method\.type QLoRA", ways)
    for field in ("baselines without FewShot, which answers the rows 3 times", "generation.maxNewTokens than 150"):
        assert f"spec.evaluation.{field}" in ways or f"smaller spec.evaluation.{field}" in ways
    assert "maxRows" not in ways, "the rows of a GPU are one batch"


def test_a_way_that_does_not_help_is_not_told() -> None:
    told = advice(nodes=2, gpus=8, **BASE_ONLY)
    assert told
    assert "FewShot" not in told
    many = advice(nodes=2, gpus=8, data=replace(DATA, answered=2000))
    assert many
    assert "a smaller spec.evaluation.maxRows than 2,000" in many
    experts = advice(nodes=2, gpus=8, shape=replace(LLAMA_70B, routed=2))
    assert experts
    assert "QLoRA" not in experts
    small = advice(nodes=2, gpus=8, gpu=GpuType(name="l4", memory="36Gi"))
    assert small
    assert "QLoRA" not in small


def test_sharded_weights_in_one_node_take_long_with_many_answers_only() -> None:
    assert advice(nodes=1, gpus=8) is None
    told = advice(nodes=1, gpus=8, data=replace(DATA, answered=2000))
    assert told
    assert "gather them from each other: 2.5 s at 50.0 GB/s" in told
    assert "spec.compute.nodes" not in told


@pytest.mark.parametrize("metrics", [[MetricName.LOSS], [MetricName.PERPLEXITY, MetricName.LOSS]])
def test_a_job_that_writes_no_answers_gets_no_advice(metrics: list[MetricName]) -> None:
    assert advice(nodes=2, gpus=8, wish=resolved(LORA).model_copy(update={"metrics": metrics})) is None


def test_whole_weights_are_not_gathered() -> None:
    assert advice(nodes=2, gpus=8, gpu=GpuType(name="h100")) is None, "they count as whole if the memory is not known"
    large = GpuType(name="b300", memory="280Gi")
    assert advice(nodes=2, gpus=8, gpu=large) is None
    assert advice(nodes=1, gpus=2, gpu=large, data=replace(DATA, answered=10_000)) is None, "hours of computing"


def test_fewer_nodes_shorten_the_evaluation_as_the_advice_says() -> None:
    over, within = (
        estimates([H100], spec(compute={"nodes": nodes, "gpusPerNode": 8}), resolved(LORA), LLAMA_70B, DATA)[0]
        for nodes in (2, 1)
    )
    assert (over.seconds or 0) > 10 * (within.seconds or 0)
    assert float(over.cost or 0) > 20 * float(within.cost or 0)


def test_preflight_gives_the_advice(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the test is too small to be sharded."""
    given = Advice(reason="AnswersTakeLong", message="Hours.")
    monkeypatch.setattr(recipe, "slow_answers", lambda *facts: [given])
    job = make_bundle()
    found = recipe.prepare(job, open_storage(job), Findings(), tmp_path / "work").preflight.advice
    assert found
    assert given in found
