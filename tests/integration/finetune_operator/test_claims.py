"""PersistentVolumeClaims on a real API server, whose controller binds them: waits of a job, and volumes of its pods."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from finetune_api import names
from tests.integration.conftest import PROFILE
from tests.integration.finetune_operator.kubelet import NODE, Kubelet
from tests.integration.finetune_operator.volumes import Volumes
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import PROFILES, Kube, Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def volumes(kube: Kube, namespace: str) -> Iterator[Volumes]:
    found = Volumes(kube, namespace)
    yield found
    found.delete()


@pytest.fixture
def profile(kube: Kube, namespace: str) -> Iterator[str]:
    """Name of a profile that allows claims and has a cache of models."""
    body = deepcopy(PROFILE)
    body["metadata"]["name"] = namespace
    body["spec"] |= {"claims": {"allowed": ["*"]}, "modelCache": {"claimName": "model-cache", "maxSize": "2Ti"}}
    kube.create(PROFILES, body)
    yield namespace
    kube.delete(f"{PROFILES}/{namespace}")


def in_claims(profile: str, **spec: Any) -> Object:
    """A job with everything in volumes."""
    parts = {
        "model": {"uri": "pvc://models/llama"},
        "dataset": {"train": [{"uri": "pvc://rows/*.jsonl"}]},
        "output": {"uri": "pvc://results/run"},
    }
    return manifest(profileName=profile, **parts | spec)


def claims_of(pod: Object) -> dict[str, bool]:
    """Whether each claim of a pod is read-only."""
    found = [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
    return {claim["claimName"]: claim.get("readOnly", False) for claim in found}


def test_a_job_waits_for_its_claims_and_mounts_them_when_they_are_there(
    kube: Kube, namespace: str, kubelet: Kubelet, volumes: Volumes, profile: str
) -> None:
    volumes.claim("models", "ReadOnlyMany")
    volumes.claim("results")
    job = Job.create(kube, namespace, in_claims(profile))
    missing = (
        f"spec.dataset.train[0].uri: PersistentVolumeClaim rows does not exist in namespace {namespace}. "
        "Create the claim"
    )
    told = wait_for("the claim to be missed", job.ready, lambda ready: ready.get("message", "").startswith(missing))
    assert told["reason"] == "WaitingForDependency"
    assert job.pods() == []
    volumes.claim("rows", "ReadWriteOnce")
    preflight = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    assert claims_of(preflight.pod) == {"models": True, "rows": True, "results": False}
    assert preflight.pod["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    preflight.validates()
    attempt = kubelet.pod_of(namespace, job.child(ATTEMPT))
    assert claims_of(attempt.pod) == {"models": True, "results": False}
    assert "initContainers" not in attempt.pod["spec"]
    kubelet.play(namespace, job.is_complete, job.selector)


def test_a_model_that_is_not_in_a_volume_is_fetched_by_a_container_of_its_own(
    kube: Kube, namespace: str, kubelet: Kubelet, volumes: Volumes, profile: str
) -> None:
    volumes.claim("model-cache")
    job = Job.create(kube, namespace, manifest(profileName=profile))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    pod = kubelet.pod_of(namespace, job.child(ATTEMPT)).pod
    (fetcher,), (trainer,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    assert fetcher["args"][:3] == [names.FETCH, "--cache-bytes", str(2 * 2**40)]
    assert "nvidia.com/gpu" not in str(fetcher)
    folders = [{mount["mountPath"] for mount in each["volumeMounts"]} for each in (fetcher, trainer)]
    assert folders[0] - folders[1] == {names.CACHE_FOLDER}
    assert folders[1] < folders[0]
    kubelet.play(namespace, job.is_complete, job.selector)
    assert "ModelCacheUnused" not in {event["reason"] for event in job.events()}


def test_without_the_claim_of_the_cache_the_attempt_starts_and_an_event_says_why(
    kube: Kube, namespace: str, kubelet: Kubelet, profile: str
) -> None:
    job = Job.create(kube, namespace, manifest(profileName=profile))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    assert "initContainers" not in kubelet.pod_of(namespace, job.child(ATTEMPT)).pod["spec"]
    (event,) = wait_for("the event", lambda: [e for e in job.events() if e["reason"] == "ModelCacheUnused"])
    assert f"does not exist in namespace {namespace}. Attempt 1 downloads its model itself." in event["message"]
    kubelet.play(namespace, job.is_complete, job.selector)


def test_the_next_attempt_waits_until_the_volume_of_the_results_has_left_a_lost_node(
    kube: Kube, namespace: str, kubelet: Kubelet, volumes: Volumes, profile: str
) -> None:
    volume = volumes.claim("results", "ReadWriteOnce")
    attachment = volumes.attach(volume)
    job = Job.create(kube, namespace, manifest(profileName=profile, output={"uri": "pvc://results/run"}))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    first = kubelet.pod_of(namespace, job.child(ATTEMPT))
    first.runs()
    first.is_disrupted("DeletionByPodGC")
    told = wait_for("the wait to be told", lambda: str(job.ready()["message"]), lambda said: "detached" in said)
    assert f"It waits until the volume of PersistentVolumeClaim results is detached from node {NODE}" in told
    assert "a2" not in job.batch_jobs()
    kube.delete(attachment)
    kubelet.play(namespace, job.is_complete, job.selector)
    assert job.status()["counts"]["attempts"] == 2
