"""A gated model on a hub that pods reach, from its token in a Secret to published results."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import Cluster
from finetune_api import names
from tests.e2e.claims import bind, log_of, unbind
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, gpus_asked_for, message, sums
from tests.integration.hub_server.server import HubServer, running_hub
from tests.integration.jobs import Job
from tests.integration.kube import Object
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer

pytestmark = pytest.mark.thorough

MODEL, ROWS, TOKEN = "acme/gated", "datasets/acme/sums", "hf_of_the_tests"
CACHE = "cache-of-the-hub"
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
def cache(tenant: Tenant, cluster: Cluster) -> Iterator[Path]:
    """The folder behind the claim CACHE."""
    folder = cluster.folder / "cache-of-the-hub"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended
    bind(tenant, CACHE, folder)
    yield folder
    unbind(tenant, CACHE)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def profile(tenant: Tenant, hub: HubServer, cache: Path) -> str:
    tenant.make_secret("hub-token", HF_TOKEN=TOKEN)
    tenant.make_secret("other-token", mine="hf_of_somebody")
    allowed = {"endpoint": hub.endpoint, "allowed": ["acme/*", "datasets/acme/*"]}
    return tenant.profile_with("with-a-hub", hub=allowed, modelCache={"claimName": CACHE})


def create(tenant: Tenant, profile: str, name: str, secret: str, key: str) -> Job:
    model = {"uri": f"hf://{MODEL}", "tokenSecretRef": {"name": secret, "key": key}}
    return tenant.create(name, "", profileName=profile, dataset={"train": TRAIN}, model=model)


@pytest.fixture(scope="module")
def tuned(tenant: Tenant, hub: HubServer, profile: str) -> tuple[Job, Object]:
    """A job whose account has access to the model, and its status at its end. The model is then in the cache.

    The hub first has too many requests. Its storage, to which it redirects, cuts the first files."""
    hub.faults.busy, hub.faults.retry_after, hub.faults.cuts = 3, 1, 4
    job = create(tenant, profile, "from-a-hub", "hub-token", "HF_TOKEN")
    return job, tenant.end_of(job)


def test_a_gated_model_of_a_hub_is_tuned_on_rows_of_a_hub(
    tenant: Tenant, hub: HubServer, tuned: tuple[Job, Object]
) -> None:
    _, status = tuned
    assert status["state"] == "Complete", message(status)
    pinned = {f"hf://{name}": hub.repositories[name].refs["main"] for name in (MODEL, ROWS)}
    assert {each["uri"]: each["commit"] for each in status["resolved"]["revisions"]} == pinned
    assert status["training"]["modelSeconds"] >= 0
    manifest = json.loads(tenant.s3.get_object(Bucket="results", Key="from-a-hub/manifest.json")["Body"].read())
    assert manifest["baseModel"]["commit"] == pinned[f"hf://{MODEL}"]
    assert {asked.token for asked in hub.asked if asked.server == "storage"} == {None}


def test_a_busy_hub_and_a_cut_connection_are_waited_out(hub: HubServer, tuned: tuple[Job, Object]) -> None:
    _, status = tuned
    assert (hub.faults.busy, hub.faults.cuts) == (0, 0), "every fault was met"
    assert (status["state"], status["counts"]) == ("Complete", {"attempts": 1}), message(status)


def test_an_account_without_access_to_a_gated_model_is_told_so_although_the_model_is_in_the_cache(
    tenant: Tenant, hub: HubServer, cache: Path, profile: str, tuned: tuple[Job, Object]
) -> None:
    (entry,) = (cache / "entries").iterdir()
    assert (entry / "model.safetensors").exists()
    job = create(tenant, profile, "no-access", "other-token", "mine")
    status = tenant.end_of(job)
    assert status["state"] == "Failed"
    assert f"Accept its conditions at {hub.endpoint}/{MODEL} with that account." in message(status)
    failed = next(condition for condition in status["conditions"] if condition["type"] == "Failed")
    assert failed["reason"] == "ModelAccessDenied"
    assert gpus_asked_for(job) == []


def test_a_second_job_with_access_takes_the_model_from_the_cache(
    tenant: Tenant, cluster: Cluster, profile: str, tuned: tuple[Job, Object]
) -> None:
    job = create(tenant, profile, "cached-of-the-hub", "hub-token", "HF_TOKEN")
    status = tenant.end_of(job)
    assert status["state"] == "Complete", message(status)
    assert "The base model came from the cache" in log_of(tenant, cluster, job, names.CONTAINER)
    assert status["training"]["modelSeconds"] < 2


def test_a_profile_without_a_hub_starts_no_pod(tenant: Tenant) -> None:
    job = tenant.create("no-hub", "", model={"uri": f"hf://{MODEL}"}, dataset={"train": TRAIN})
    status = tenant.end_of(job)
    assert "has no hub" in message(status)
    assert job.batch_jobs() == {}
