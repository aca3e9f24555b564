"""Reading the spec of an object that another version of the project may have written."""

from typing import Any

import pytest

from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.observed.world import parse_spec
from tests.unit.finetune_operator.worlds import PROFILE, SPEC

JOB, FLEET = SPEC.model_dump(by_alias=True, exclude_none=True), PROFILE.model_dump(by_alias=True, exclude_none=True)


@pytest.mark.parametrize(
    "later", [{"tracking": {"uri": "x"}}, {"training": {"warp": 9}}, {"runPolicy": {"maxWaits": 1}}]
)
def test_fields_of_a_later_version_of_a_job_are_ignored(later: dict[str, Any]) -> None:
    spec, error = parse_spec(FineTuneJobSpec, {**JOB, **later})

    assert (error, spec is not None and spec.model == SPEC.model) == (None, True)


def test_fields_of_a_later_version_of_a_profile_are_ignored() -> None:
    assert parse_spec(FineTuneProfileSpec, {**FLEET, "limits": {"gpus": 8}}) == (PROFILE, None)


def test_a_price_that_a_later_version_permits_is_named() -> None:
    """It would otherwise stop every decision about the job."""
    _, of_job = parse_spec(FineTuneJobSpec, {**JOB, "runPolicy": {"budget": {"cost": "40 EUR"}}})
    gpu = {"name": "h100", "memory": "80Gi", "resourceName": "nvidia.com/gpu", "pricePerHour": "1,000"}
    _, of_profile = parse_spec(FineTuneProfileSpec, {**FLEET, "gpuTypes": [gpu]})

    assert of_job is not None
    assert of_job.startswith("spec.runPolicy.budget.cost: ")
    assert of_profile is not None
    assert of_profile.startswith("spec.gpuTypes.0.pricePerHour: ")


@pytest.mark.parametrize(
    ("field", "amount"),
    [("cpu", "2 cores"), ("memory", "80 GB")],
)
def test_an_amount_of_a_job_that_a_later_version_permits_is_named(field: str, amount: str) -> None:
    _, error = parse_spec(FineTuneJobSpec, {**JOB, "compute": {field: amount}})

    assert error is not None
    assert error.startswith(f"spec.compute.{field}: ")
    assert "write for example 80Gi for memory or 500m for CPU" in error


@pytest.mark.parametrize(
    ("field", "section"),
    [
        ("modelCache.maxSize", {"modelCache": {"claimName": "models", "maxSize": "1 TB"}}),
        ("pods.scratchSizeLimit", {"pods": {"scratchSizeLimit": "200 GB"}}),
        (
            "pods.preflight.resources.limits.memory",
            {"pods": {"preflight": {"resources": {"limits": {"memory": "8gi"}}}}},
        ),
        ("gpuTypes.0.memory", {"gpuTypes": [{"name": "h100", "memory": "80 GB", "resourceName": "nvidia.com/gpu"}]}),
    ],
)
def test_an_amount_of_a_profile_that_a_later_version_permits_is_named(field: str, section: dict[str, Any]) -> None:
    _, error = parse_spec(FineTuneProfileSpec, {**FLEET, **section})

    assert error is not None
    assert error.startswith(f"spec.{field}: ")


def test_a_value_of_a_later_version_is_named() -> None:
    spec, error = parse_spec(FineTuneJobSpec, {**JOB, "training": {"scheduler": "Sawtooth"}})

    assert spec is None
    assert error is not None
    assert error.startswith("spec.training.scheduler: ")
