"""A gated model on a hub that pods reach, from its token in a Secret to published results."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import Cluster
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, gpus_asked_for, message, sums
from tests.integration.hub_server import HubServer, running_hub
from tests.integration.jobs import Job
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer

MODEL, ROWS, TOKEN = "acme/gated", "datasets/acme/sums", "hf_of_the_tests"
TRAIN = [{"uri": f"hf://{ROWS}/data/*.jsonl", "columns": SUMS_COLUMNS}]


@pytest.fixture(scope="module")
def hub(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub at the address of the first node, for pods. The account of TOKEN has access to its gated model."""
    folder: Path = tmp_path_factory.mktemp("gated")
    save_tokenizer(folder)
    save_model(folder)
    with running_hub(cluster.nodes[0].namespaces.listen) as server:
        server.tokens = {TOKEN: {MODEL}, "hf_of_somebody": set()}
        server.commit(MODEL, folder, gated=True)
        rows = "".join(f"{json.dumps(row)}\n" for row in sums(30))
        server.commit(ROWS, {"data/sums.jsonl": rows.encode()})
        yield server


@pytest.fixture(scope="module")
def profile(tenant: Tenant, hub: HubServer) -> str:
    tenant.make_secret("hub-token", HF_TOKEN=TOKEN)
    tenant.make_secret("other-token", mine="hf_of_somebody")
    return tenant.profile_with("with-a-hub", hub={"endpoint": hub.endpoint, "allowed": ["acme/*", "datasets/acme/*"]})


def model(secret: str, key: str) -> dict[str, object]:
    return {"uri": f"hf://{MODEL}", "tokenSecretRef": {"name": secret, "key": key}}


@pytest.fixture(scope="module")
def jobs(tenant: Tenant, profile: str) -> dict[str, Job]:
    """A job whose account has access to the model, and one whose account has none."""
    models = {"from-a-hub": model("hub-token", "HF_TOKEN"), "no-access": model("other-token", "mine")}
    spec = {"profileName": profile, "dataset": {"train": TRAIN}}
    return {name: tenant.create(name, "", **spec, model=wish) for name, wish in models.items()}


def test_a_gated_model_of_a_hub_is_tuned_on_rows_of_a_hub(tenant: Tenant, hub: HubServer, jobs: dict[str, Job]) -> None:
    status = tenant.end_of(jobs["from-a-hub"])
    assert status["state"] == "Complete", message(status)
    pinned = {f"hf://{name}": hub.repositories[name].refs["main"] for name in (MODEL, ROWS)}
    assert {each["uri"]: each["commit"] for each in status["resolved"]["revisions"]} == pinned
    assert status["training"]["modelSeconds"] >= 0
    manifest = json.loads(tenant.s3.get_object(Bucket="results", Key="from-a-hub/manifest.json")["Body"].read())
    assert manifest["baseModel"]["commit"] == pinned[f"hf://{MODEL}"]
    assert {asked.token for asked in hub.asked if asked.server == "storage"} == {None}


def test_an_account_without_access_to_a_gated_model_is_told_before_a_gpu_is_requested(
    tenant: Tenant, hub: HubServer, jobs: dict[str, Job]
) -> None:
    job = jobs["no-access"]
    status = tenant.end_of(job)
    assert status["state"] == "Failed"
    assert f"Accept its conditions at {hub.endpoint}/{MODEL} with that account." in message(status)
    failed = next(condition for condition in status["conditions"] if condition["type"] == "Failed")
    assert failed["reason"] == "ModelAccessDenied"
    assert gpus_asked_for(job) == []


def test_a_profile_without_a_hub_starts_no_pod(tenant: Tenant) -> None:
    job = tenant.create("no-hub", "", model={"uri": f"hf://{MODEL}"}, dataset={"train": TRAIN})
    status = tenant.end_of(job)
    assert "has no hub" in message(status)
    assert job.batch_jobs() == {}
