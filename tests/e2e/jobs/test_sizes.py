"""Jobs that are too large for the GPUs, the memory or the disk of their pods. The preflight's pod says what would fit,
and no pod holds a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from devcluster import Cluster
from devcluster.images import TRAINER_IMAGE
from tests.e2e.setting import put_wide_model
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, gpus_asked_for, message, sums
from tests.integration.jobs import Job

PROFILE_OF_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora-only": ("1214Mi", {}),
    "nothing-fits": ("1040Mi", {}),
    "large": ("24Gi", {}),
    "little-disk": ("24Gi", {"pods": {"scratchSizeLimit": "128Mi"}}),
}
"""For each profile the memory of its GPU type, and more fields. Training all weights of the wide model needs more than
the first, with PagedAdamW8bit too. QLoRA needs more than the second."""
FULL, TWO = {"type": "Full"}, {"gpusPerNode": 2}
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "full-weights": (
        "lora-only",
        {"method": FULL},
        ("With spec.method.type LoRA, the job would need ",),
    ),
    "paged-states": (
        "lora-only",
        {"method": FULL, "compute": TWO, "training": {"optimizer": "PagedAdamW8bit"}},
        ("the state of spec.training.optimizer PagedAdamW8bit cannot be sharded",),
    ),
    "four-bit-weights": (
        "nothing-fits",
        {"method": {"type": "QLoRA"}, "compute": TWO},
        ("Each of the 2 GPUs needs this memory, because 4-bit weights cannot be sharded",),
    ),
    "little-memory": (
        "large",
        {"compute": {"memory": "256Mi"}},
        ("Each training pod needs about ", "spec.compute.memory is 256Mi", "Set spec.compute.memory to "),
    ),
    "little-disk": (
        "little-disk",
        {"method": FULL},
        ("Its scratch volume has 128Mi", "Set spec.pods.scratchSizeLimit of the profile to "),
    ),
}
"""For each job its profile, its fields, and what its message says."""


@contextmanager
def started(tenant: Tenant, cluster: Cluster) -> Iterator[dict[str, Job]]:
    for name, (memory, more) in PROFILE_OF_SIZES.items():
        types = [{"name": "any", "memory": memory, "pricePerHour": "1.00"}]
        tenant.profile_with(name, trainer={"image": TRAINER_IMAGE}, gpuTypes=types, **more)  # without allowCPU
    with TemporaryDirectory() as folder:
        model = {"uri": put_wide_model(tenant.s3, Path(folder))}
    rows = tenant.put_rows("sizes.jsonl", sums(30))
    common: dict[str, Any] = {"model": model, "dataset": {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}}
    yield {
        name: tenant.create(f"size-{name}", rows, profileName=own, **{**common, **spec})
        for name, (own, spec, _) in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_job_that_is_too_large_says_what_would_fit_and_never_requests_a_gpu(
    tenant: Tenant, jobs: dict[str, Job], name: str
) -> None:
    status = tenant.end_of(jobs[name])

    told = {condition["type"]: condition["reason"] for condition in status["conditions"]}
    assert told["Failed"] == "DoesNotFit", message(status)
    for words in CASES[name][2]:
        assert words in message(status)
    assert gpus_asked_for(jobs[name]) == []
