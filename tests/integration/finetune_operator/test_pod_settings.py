"""The pods of a profile with every setting, as a real API server and Job controller make them."""

from collections.abc import Iterator
from copy import deepcopy

import pytest

from finetune_api import names
from tests.integration.conftest import PROFILE
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import PROFILES, Kube, Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")
PRIORITIES, RUNTIMES = "/apis/scheduling.k8s.io/v1/priorityclasses", "/apis/node.k8s.io/v1/runtimeclasses"
PODS: Object = {
    "labels": {"cost-center": "research"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"pool": "ml", "gpu.example/model": "none"},
    "tolerations": [{"key": "ml", "operator": "Exists"}],
    "omitUserIds": True,
    "allowed": {"labels": ["team"], "annotations": ["acme.com/*"], "priorityClassNames": ["*"]},
    "preflight": {
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "16Gi"}},
        "tolerations": [{"key": "cpu-only", "operator": "Exists", "effect": "NoSchedule"}],
    },
}


@pytest.fixture
def classes(kube: Kube, namespace: str) -> Iterator[str]:
    """A PriorityClass and a RuntimeClass with the name of the namespace, and a PriorityClass urgent-NAMESPACE."""
    made = [
        (PRIORITIES, {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 7}, namespace),
        (
            PRIORITIES,
            {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 9},
            f"urgent-{namespace}",
        ),
        (RUNTIMES, {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "runc"}, namespace),
    ]
    for path, body, name in made:
        kube.create(path, {**body, "metadata": {"name": name}})
    yield namespace
    for path, _, name in made:
        kube.delete(f"{path}/{name}")


@pytest.fixture
def profile(kube: Kube, classes: str) -> Iterator[str]:
    """Name of a profile with every setting of pods."""
    body = deepcopy(PROFILE)
    body["metadata"]["name"] = classes
    body["spec"]["pods"] = {**PODS, "priorityClassName": classes, "runtimeClassName": classes}
    kube.create(PROFILES, body)
    yield classes
    kube.delete(f"{PROFILES}/{classes}")


def test_every_pod_has_the_settings_of_the_profile(kube: Kube, namespace: str, kubelet: Kubelet, profile: str) -> None:
    job = Job.create(kube, namespace, manifest(profileName=profile))
    preflight = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    preflight.validates()
    attempt = kubelet.pod_of(namespace, job.child(ATTEMPT))

    for pod in (preflight.pod, attempt.pod):
        metadata, spec = pod["metadata"], pod["spec"]
        assert metadata["labels"]["cost-center"] == "research"
        assert metadata["labels"][names.LABEL_JOB_UID] == job.uid
        assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert (spec["priorityClassName"], spec["priority"], spec["runtimeClassName"]) == (profile, 7, profile)
        assert spec["nodeSelector"]["pool"] == "ml"
        assert "ml" in {toleration.get("key") for toleration in spec["tolerations"]}
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(spec["securityContext"])
        assert spec["securityContext"]["runAsNonRoot"] is True
    assert preflight.pod["spec"]["containers"][0]["resources"] == PODS["preflight"]["resources"]
    assert "cpu-only" in {toleration.get("key") for toleration in preflight.pod["spec"]["tolerations"]}
    assert "cpu-only" not in {toleration.get("key") for toleration in attempt.pod["spec"]["tolerations"]}
    # The GPU type knows its nodes better than the settings of all pods.
    assert attempt.pod["spec"]["nodeSelector"]["gpu.example/model"] == "h100"
    kubelet.play(namespace, job.is_complete, job.selector)


def test_a_job_adds_labels_annotations_and_a_priority_to_its_pods(
    kube: Kube, namespace: str, kubelet: Kubelet, profile: str
) -> None:
    compute = {
        "labels": {"team": "search"},
        "annotations": {"acme.com/note": "any text, also with spaces"},
        "priorityClassName": f"urgent-{profile}",
    }
    job = Job.create(kube, namespace, manifest(profileName=profile, compute=compute))
    pod = kubelet.pod_of(namespace, job.child(PREFLIGHT)).pod
    assert pod["metadata"]["labels"].items() >= {"team": "search", "cost-center": "research"}.items()
    assert pod["metadata"]["annotations"]["acme.com/note"] == "any text, also with spaces"
    assert (pod["spec"]["priorityClassName"], pod["spec"]["priority"]) == (f"urgent-{profile}", 9)


def test_a_class_that_does_not_exist_is_told_with_what_helps(
    kube: Kube, namespace: str, kubelet: Kubelet, profile: str
) -> None:
    job = Job.create(kube, namespace, manifest(profileName=profile, compute={"priorityClassName": "nowhere"}))
    told = wait_for(
        "the refusal to be told", lambda: str(job.ready().get("message")), lambda said: "no PriorityClass" in said, 60
    )
    assert "or correct its name: in spec.pods of the FineTuneProfile, in spec.compute of the job" in told
