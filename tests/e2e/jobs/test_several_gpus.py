"""Trainings with two GPUs in one pod: a rank that fails, and a model that does not fit one of the GPUs."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from devcluster import Cluster
from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.rank import RANK
from tests.e2e.setting import put_wide_model
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import GPU, Job
from tests.integration.kube import Object
from tests.integration.pod_processes import processes_of
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.thorough

TOLD_SECONDS = 30.0
"""Longest from the end of a rank until the status of the job says so."""
SIZES = range(2048, 3072, 64)
"""Memory of the GPU types in MiB, from one that is too small to one that has room for the whole model."""


@pytest.fixture(scope="module")
def jobs(tenant: Tenant, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Two jobs for both GPUs of the node. Each waits until the other one does not use them."""
    rows = tenant.put_rows("gpus.jsonl", sums(60))
    common: dict[str, Any] = {
        "dataset": {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]},
        "compute": {"cpu": "500m", "memory": "3Gi", "gpusPerNode": 2},
    }
    long = {"maxSteps": 600, "epochs": 100, "checkpoint": {"every": 5}}
    wide: dict[str, Any] = {
        "profileName": with_many_types(tenant),
        "model": {"uri": put_wide_model(tenant.s3, tmp_path_factory.mktemp("wide"))},
    }
    return {
        "loses-a-rank": tenant.create("loses-a-rank", rows, training=long, **common),
        "sharded": tenant.create("sharded", rows, method={"type": "Full"}, **wide, **common),
    }


def with_many_types(tenant: Tenant) -> str:
    """Makes a profile with many GPU types. Each has a little more memory than the one before. Returns its name."""
    types = [{"name": f"mib-{size}", "memory": f"{size}Mi", "pricePerHour": f"{size / 1000:.3f}"} for size in SIZES]
    return tenant.profile_with("many-types", gpuTypes=types)


def trainer(job: Job) -> Object:
    """The pod of the only attempt so far."""
    (pod,) = [pod for pod in job.pods() if names.LABEL_ATTEMPT in pod["metadata"]["labels"]]
    return pod


def kill_rank(pod: Object, rank: int) -> None:
    """Kills the process of a rank."""
    for pid in processes_of(pod):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if f"{RANK}={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                return
    raise AssertionError(f"no rank {rank} in pod {pod['metadata']['name']}")


def test_a_rank_that_is_killed_is_told_within_30_seconds_and_the_job_goes_on(
    tenant: Tenant, jobs: dict[str, Job]
) -> None:
    job = jobs["loses-a-rank"]
    taken = wait_for("steps", job.status, lambda s: s.get("training", {}).get("step", 0) >= 10, 300)["training"]["step"]
    pod = trainer(job)
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"][GPU] == "2"

    kill_rank(pod, 1)
    began = time.monotonic()
    (attempt,) = wait_for("the reason", job.status, lambda s: "reason" in s["attempts"][0], 120)["attempts"]
    seconds = time.monotonic() - began

    assert (attempt["reason"], seconds < TOLD_SECONDS) == (FailureReason.KILLED, True), f"{seconds:.1f} s"
    assert "rank 1 of 2" in attempt["message"]
    status = tenant.end_of(job)
    assert (status["state"], status["counts"]["attempts"]) == ("Complete", 2), message(status)
    assert taken - 5 <= status["training"]["resumedFromStep"] < 600
    assert status["gpuSeconds"] == sum(attempt["gpuSeconds"] for attempt in status["attempts"])


def test_a_model_that_does_not_fit_one_gpu_is_sharded_over_both(
    tenant: Tenant, installed: Cluster, jobs: dict[str, Job]
) -> None:
    job = jobs["sharded"]
    status = tenant.end_of(job)
    assert status["state"] == "Complete", message(status)

    estimates = {estimate["gpuType"]: estimate for estimate in status["preflight"]["estimate"]}
    fits = [name for name, estimate in estimates.items() if estimate["fits"]]
    assert 0 < len(fits) < len(estimates)
    assert status["gpuType"]["name"] == fits[0], "the cheapest of those that fit"
    assert estimates[fits[0]]["sharded"] is True
    assert "sharded" not in estimates[fits[-1]], "the largest type has room for the whole model"
    log = installed.kubectl("logs", "-n", job.namespace, trainer(job)["metadata"]["name"])
    assert "The weights are sharded over 2 GPUs, because the model does not fit one of them." in log
    assert "model/model.safetensors" in "".join(tenant.objects("results", "sharded/"))
