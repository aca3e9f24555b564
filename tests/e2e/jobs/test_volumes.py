"""Models, rows, results and the cache of models in volumes, which real pods of a restricted namespace mount."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster import Cluster
from finetune_api import names
from tests.e2e.claims import bind, log_of, unbind
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer, write_rows

MODES = {"models": "ReadOnlyMany", "rows": "ReadOnlyMany", "results": "ReadWriteMany", "cache": "ReadWriteMany"}


@dataclass(frozen=True)
class Volumes:
    """The folders behind the claims of the tenant, and the profile that allows them."""

    folder: Path
    profile: str

    def files(self, claim: str) -> set[str]:
        found = self.folder / claim
        return {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def volumes(tenant: Tenant, cluster: Cluster) -> Iterator[Volumes]:
    """A volume on the node for each claim, with a tiny model and rows. The claim of the cache is made by a test."""
    folder = cluster.folder / "volumes-of-tests"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended
    for name, mode in MODES.items():
        bind(tenant, name, folder / name, mode)
    (folder / "models" / "v1").mkdir()
    save_tokenizer(folder / "models" / "v1")
    save_model(folder / "models" / "v1")
    (folder / "models" / "v1" / "model.safetensors").chmod(0o644)  # save_pretrained lets only its user read it
    (folder / "models" / "current").symlink_to("v1")
    write_rows(folder / "rows" / "deep" / "sums.jsonl", sums(30))
    found = {"claims": {"allowed": ["models", "rows", "results"]}, "modelCache": {"claimName": "cache"}}
    yield Volumes(folder, tenant.profile_with("with-volumes", **found))
    for name in MODES:
        unbind(tenant, name)
    shutil.rmtree(folder)


def create(tenant: Tenant, volumes: Volumes, name: str, **spec: Any) -> Job:
    train = [{"uri": "pvc://rows/**/*.jsonl", "columns": SUMS_COLUMNS}]
    return tenant.create(name, "", **{"profileName": volumes.profile, "dataset": {"train": train}} | spec)


def test_a_job_without_s3_has_its_model_rows_and_results_in_volumes(tenant: Tenant, volumes: Volumes) -> None:
    spec = {"model": {"uri": "pvc://models/current"}, "output": {"uri": "pvc://results/team/run"}}
    job = create(tenant, volumes, "in-volumes", **spec)
    status = tenant.end_of(job)
    assert status["state"] == "Complete", message(status)
    assert status["artifacts"]["adapter"] == "pvc://results/team/run/adapter"
    published = {name.removeprefix("team/run/") for name in volumes.files("results")}
    manifest = json.loads((volumes.folder / "results/team/run/manifest.json").read_text())
    assert published == {"manifest.json", *(file["path"] for file in manifest["files"])}
    assert manifest["job"]["uid"] == job.uid
    assert not (volumes.folder / "results/team/run/.work").exists()


def test_the_results_of_another_job_in_a_volume_are_not_overwritten(tenant: Tenant, volumes: Volumes) -> None:
    folder = volumes.folder / "results" / "taken"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "manifest.json").write_text('{"job": {"uid": "x", "namespace": "team", "name": "first"}}')
    job = create(tenant, volumes, "taken", model={"uri": "pvc://models/v1"}, output={"uri": "pvc://results/taken"})
    status = tenant.end_of(job)
    assert status["state"] == "Failed"
    assert "already contains the results of team/first" in message(status)


def test_a_link_to_a_secret_of_the_pod_is_not_read_as_rows(tenant: Tenant, volumes: Volumes) -> None:
    folder = volumes.folder / "rows" / "links"
    folder.mkdir()
    (folder / "keys.jsonl").symlink_to(f"{names.STORAGE_FOLDER}/s3/AWS_SECRET_ACCESS_KEY")
    train = [{"uri": "pvc://rows/links/*.jsonl", "columns": SUMS_COLUMNS}]
    job = create(tenant, volumes, "links", model={"uri": "pvc://models/v1"}, dataset={"train": train})
    status = tenant.end_of(job)
    (folder / "keys.jsonl").unlink()
    assert status["state"] == "Failed"
    assert "leads out of the volume of PersistentVolumeClaim rows" in message(status)


@pytest.mark.thorough
def test_a_second_job_takes_its_model_from_the_cache(tenant: Tenant, volumes: Volumes, cluster: Cluster) -> None:
    for name, told in (("caching", "was downloaded"), ("cached", "came from the cache")):
        job = create(tenant, volumes, name)
        status = tenant.end_of(job)
        assert status["state"] == "Complete", message(status)
        assert f"The base model {told}" in log_of(tenant, cluster, job, names.FETCHER)
        assert f"The base model {told}" in log_of(tenant, cluster, job, names.CONTAINER)
        assert "ModelCacheUnused" not in {event["reason"] for event in job.events()}
    assert status["training"]["modelSeconds"] < 2
    (entry,) = (volumes.folder / "cache" / "entries").iterdir()
    assert {path.name for path in entry.iterdir()} >= {"cached.json", "config.json", "model.safetensors"}


@pytest.mark.thorough
def test_a_damaged_copy_in_the_cache_is_replaced(tenant: Tenant, volumes: Volumes, cluster: Cluster) -> None:
    (entry,) = (volumes.folder / "cache" / "entries").iterdir()
    weights = entry / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    job = create(tenant, volumes, "damaged")
    assert tenant.end_of(job)["state"] == "Complete"
    assert "model.safetensors has another sha256" in log_of(tenant, cluster, job, names.FETCHER)
    assert weights.read_bytes() == whole
