"""The demo watches a job on a real API server, and reports why a watch ends."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from devcluster import Cluster, ClusterError
from devcluster.build import built
from devcluster.storage import S3Keys
from examples.demo import watch
from examples.demo.target import JOB, NAMESPACE, Target
from examples.demo.watch import changes
from finetune_api import names
from tests.integration.kube import JOBS, Kube

PATH = f"{JOBS.format(NAMESPACE)}/{JOB}"


@pytest.fixture
def target(installed: Cluster, kube: Kube) -> Iterator[Target]:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    kube.apply(f"/api/v1/namespaces/{NAMESPACE}", namespace)
    spec = {
        "model": {"uri": "s3://acme-models/m"},
        "dataset": {"train": [{"uri": "s3://acme-data/*.jsonl"}]},
        "output": {"uri": "s3://acme-results/r"},
    }
    job = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "metadata": {"name": JOB}, "spec": spec}
    kube.create(JOBS.format(NAMESPACE), job)
    program, config = str(built() / "kube"), str(installed.kubeconfig)
    yield Target(
        local=True,
        kubectl_command=(program, "kubectl", "--kubeconfig", config),
        helm_command=(program, "helm", "--kubeconfig", config),
        endpoint="",
        region="",
        keys=S3Keys("", ""),
        root="s3://",
        release="finetune-operator",
        operator_image="",
        trainer_image="",
    )
    kube.delete(PATH)


def test_every_change_is_yielded_and_the_clock_advances_between_changes(target: Target, kube: Kube) -> None:
    resources = changes(target)
    first = next(resources)
    assert first["metadata"]["name"] == JOB
    assert next(resources)["metadata"]["uid"] == first["metadata"]["uid"]

    kube.merge(f"{PATH}/status", {"status": {"state": "Queued"}})

    assert next(r for r in resources if r["status"].get("state"))["status"]["state"] == "Queued"
    resources.close()


def test_a_deleted_job_ends_the_watch_with_a_message(target: Target, kube: Kube) -> None:
    resources = changes(target)
    next(resources)
    kube.delete(PATH)
    with pytest.raises(ClusterError, match="FineTuneJob tickets was deleted"):
        list(resources)


def test_a_watch_that_misses_the_end_of_the_job_in_silence_is_started_again(
    target: Target, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = [sys.executable, "-c", "import time; time.sleep(600)"]
    popen = subprocess.Popen
    monkeypatch.setattr(
        watch.subprocess,
        "Popen",
        lambda command, **options: popen(silent if "--watch" in command else command, **options),
    )
    monkeypatch.setattr(watch, "SILENT_AFTER_SECONDS", 1.0)
    resources = changes(target)
    next(resources)
    kube.delete(PATH)
    with pytest.raises(ClusterError, match="FineTuneJob tickets was deleted"):
        list(resources)


def test_a_job_that_stands_still_ends_the_watch(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STALLED_AFTER_SECONDS", 1.0)
    with pytest.raises(ClusterError, match="has not changed for"):
        list(changes(target))


def test_a_missing_job_is_an_error_at_once(target: Target, kube: Kube) -> None:
    kube.delete(PATH)
    with pytest.raises(ClusterError, match="There is no FineTuneJob tickets"):
        next(changes(target))
