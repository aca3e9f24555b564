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
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.jobs import Job
from tests.integration.kube import Object
from tests.integration.waiting import wait_for
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
    for name in MODES:
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o777)  # of hostPath, the kubelet changes no owner
        bind(tenant, name, folder / name)
    (folder / "models" / "v1").mkdir()
    save_tokenizer(folder / "models" / "v1")
    save_model(folder / "models" / "v1")
    (folder / "models" / "v1" / "model.safetensors").chmod(0o644)  # save_pretrained lets only its user read it
    (folder / "models" / "current").symlink_to("v1")
    write_rows(folder / "rows" / "deep" / "sums.jsonl", sums(30))
    found = {"claims": {"allowed": ["models", "rows", "results"]}, "modelCache": {"claimName": "cache"}}
    yield Volumes(folder, tenant.profile_with("with-volumes", **found))
    for name in MODES:
        tenant.kube.delete(f"/api/v1/namespaces/{tenant.namespace}/persistentvolumeclaims/{name}")
        tenant.kube.delete(f"/api/v1/persistentvolumes/{tenant.namespace}-{name}")
    shutil.rmtree(folder)


def bind(tenant: Tenant, name: str, folder: Path) -> None:
    """Makes a claim and the volume to which it is bound."""
    amount, modes, volume = {"storage": "1Gi"}, [MODES[name]], f"{tenant.namespace}-{name}"
    claims = f"/api/v1/namespaces/{tenant.namespace}/persistentvolumeclaims"
    reference = {"namespace": tenant.namespace, "name": name}
    shared = {"accessModes": modes, "storageClassName": ""}
    source = {"capacity": amount, "hostPath": {"path": str(folder)}, "claimRef": reference}
    tenant.kube.create("/api/v1/persistentvolumes", body("PersistentVolume", volume, shared | source))
    wish = shared | {"resources": {"requests": amount}, "volumeName": volume}
    tenant.kube.create(claims, body("PersistentVolumeClaim", name, wish))
    wait_for(f"claim {name} to be bound", lambda: tenant.kube.get(f"{claims}/{name}")["status"]["phase"] == "Bound")


def body(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def create(tenant: Tenant, volumes: Volumes, name: str, **spec: Any) -> Job:
    train = [{"uri": "pvc://rows/**/*.jsonl", "columns": SUMS_COLUMNS}]
    return tenant.create(name, "", **{"profileName": volumes.profile, "dataset": {"train": train}} | spec)


def log_of(tenant: Tenant, cluster: Cluster, job: Job, container: str) -> str:
    """The log of a container of the first attempt."""
    child = f"job/{job.child('a1')}"
    return str(cluster.kubectl("logs", "-n", tenant.namespace, child, "--container", container))


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


def test_a_damaged_copy_in_the_cache_is_replaced(tenant: Tenant, volumes: Volumes, cluster: Cluster) -> None:
    (entry,) = (volumes.folder / "cache" / "entries").iterdir()
    weights = entry / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    job = create(tenant, volumes, "damaged")
    assert tenant.end_of(job)["state"] == "Complete"
    assert "model.safetensors has another sha256" in log_of(tenant, cluster, job, names.FETCHER)
    assert weights.read_bytes() == whole
