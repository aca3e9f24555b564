"""Many jobs, one GPU: they run one after another, none is lost, and the operator stays as small as it was. Their models
are of several kinds: dense, with experts, and with a part that reads images."""

import itertools

import pytest

from devcluster import Cluster
from tests.e2e.setting import SYSTEM
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, sums
from tests.integration.kube import JOBS, Object
from tests.integration.waiting import wait_for
from tests.unit.finetune_trainer.conftest import save_tokenizer
from tests.unit.finetune_trainer.model_families import gpt_oss, qwen2_5_vl, save_family

ROOM = 1.3
"""How much larger the operator may be after the jobs than before."""


KINDS = (gpt_oss, qwen2_5_vl)


@pytest.fixture(scope="module")
def models(tenant: Tenant, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The URIs of the tiny model, and of one of each of KINDS."""
    found = [tenant.model]
    for kind in KINDS:
        folder = save_family(kind, tmp_path_factory.mktemp("kinds") / kind.__name__)
        save_tokenizer(folder)
        for file in folder.iterdir():
            tenant.s3.upload_file(str(file), "models", f"{kind.__name__}/{file.name}")
        found.append(f"s3://models/{kind.__name__}")
    return found


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("count", "seconds"), [pytest.param(3, 300, id="3"), pytest.param(50, 3600, id="50", marks=pytest.mark.soak)]
)
@pytest.mark.timeout(3700)
def test_jobs_created_at_once_run_one_after_another(
    tenant: Tenant, installed: Cluster, models: list[str], one_gpu: None, count: int, seconds: float
) -> None:
    train = tenant.put_rows("many.jsonl", sums(30))
    sources = {"train": [{"uri": train, "columns": SUMS_COLUMNS}]}
    before = operator_megabytes(installed)

    # What each of them learns is not the point.
    short = {"training": {"maxSteps": 1}, "evaluation": {"maxRows": 2, "baselines": ["Base"]}}
    of_kinds = enumerate(itertools.islice(itertools.cycle(models), count))
    jobs = [
        tenant.create(f"many-{count}-{i}", train, dataset=sources, model={"uri": uri}, **short) for i, uri in of_kinds
    ]

    def states() -> list[str]:
        # One list, not one read a job: fifty of them over and over would keep a core busy that the pods need.
        found = tenant.kube.list(JOBS.format(tenant.namespace))
        return [job["status"].get("state", "") for job in found if job["metadata"]["name"].startswith(f"many-{count}-")]

    wait_for("all to be Complete", states, lambda found: found == ["Complete"] * count, seconds)
    assert {job.status()["training"]["step"] for job in jobs} == {1}
    spans = sorted(span(job.status()["attempts"][0]) for job in jobs)
    overlaps = [(a, b) for a, b in itertools.pairwise(spans) if b[0] < a[1]]
    assert overlaps == []
    assert operator_megabytes(installed) < before * ROOM


def span(attempt: Object) -> tuple[str, str]:
    """When its pod ran."""
    return attempt["startTime"], attempt["completionTime"]


def operator_megabytes(cluster: Cluster) -> float:
    """Resident memory of the operator's process."""
    read = ["exec", "-n", SYSTEM, "deployment/finetune-operator", "--", "grep", "VmRSS", "/proc/1/status"]
    return int(cluster.kubectl(*read).split()[1]) / 1024
