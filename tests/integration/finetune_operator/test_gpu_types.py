"""A profile with several GPU types: the operator chooses one for each job, and the job keeps it."""

from collections.abc import Iterator
from copy import deepcopy

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_api.status.job import ConditionType
from finetune_api.status.preflight import Estimate
from tests.integration import sample_status
from tests.integration.conftest import PROFILE
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.looking import nudge
from tests.integration.finetune_operator.running import SECOND
from tests.integration.jobs import ATTEMPT, GPU, PREFLIGHT, Job, manifest
from tests.integration.kube import PROFILES, Kube, Object
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")
H100 = {"name": "h100", "memory": "81559Mi", "pricePerHour": "2.50"}
L4 = {
    "name": "l4",
    "memory": "23034Mi",
    "pricePerHour": "0.80",
    "capacityType": "Spot",
    "nodeSelector": {"gpu.example/model": "l4"},
    "tolerations": [{"key": "spot", "operator": "Exists"}, {"key": "gpu", "value": "l4", "effect": "NoSchedule"}],
}
NO_NODE = "0/8 nodes are available: 8 Insufficient nvidia.com/gpu."
SLICE = {"name": "slice", "resourceName": "nvidia.com/mig-1g.10gb", "memory": "9856Mi", "pricePerHour": "0.45"}


@pytest.fixture
def profile(kube: Kube, namespace: str) -> Iterator[str]:
    """Name of a profile with three GPU types."""
    body = deepcopy(PROFILE)
    body["metadata"]["name"] = namespace
    body["spec"]["gpuTypes"] = [H100, L4, SLICE]
    kube.create(PROFILES, body)
    yield namespace
    kube.delete(f"{PROFILES}/{namespace}")


def validated(kube: Kube, namespace: str, kubelet: Kubelet, profile: str, **spec: object) -> Job:
    """A job whose preflight predicts that it fits the h100 and the l4."""
    job = Job.create(kube, namespace, manifest(profileName=profile, **spec))
    pod = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    pod.runs()
    pod.writer.condition(ConditionType.VALIDATED, True, "Valid", "240 rows are good.")
    predicted = [
        Estimate(gpu_type="h100", memory="14.0Gi", fits=True, seconds=600, cost="0.42"),
        Estimate(gpu_type="l4", memory="14.0Gi", fits=True, seconds=1500, cost="0.33"),
        Estimate(gpu_type="slice", memory="14.0Gi", fits=False, alternative="No method would fit."),
    ]
    preflight = sample_status.PREFLIGHT.model_copy(update={"estimate": predicted})
    pod.writer.result(preflight=preflight, resolved=sample_status.RESOLVED)
    pod.succeeds()
    return job


def requested(job: Job, child: str) -> Object:
    """The pod template of an attempt."""
    template: Object = job.batch_jobs()[child]["spec"]["template"]
    return template


def test_the_cheapest_type_that_fits_is_requested_and_the_status_says_why(
    kube: Kube, namespace: str, kubelet: Kubelet, profile: str
) -> None:
    job = validated(kube, namespace, kubelet, profile)
    pod = kubelet.pod_of(namespace, job.child(ATTEMPT))
    pod.finds_no_node(NO_NODE)
    # The same type is told before this, while the pod is starting: the whole status is written only with these words.
    told = wait_for("the scheduler's words to be told", job.ready, lambda c: NO_NODE in c["message"])
    assert told["message"].endswith("The job requests GPU type l4.")

    spec, labels = pod.pod["spec"], pod.pod["metadata"]["labels"]
    assert spec["nodeSelector"] == L4["nodeSelector"]
    assert spec["containers"][0]["resources"]["limits"][GPU] == "1"
    assert {t["key"] for t in spec["tolerations"]} >= {"spot", "gpu"}
    assert labels[names.LABEL_GPU_TYPE] == "l4"
    chosen = job.status()["gpuType"]
    assert (chosen["name"], chosen["reason"]) == ("l4", "Cheapest")
    assert chosen["message"].startswith(
        "l4 is the cheapest of the GPU types that fit: about 0.33 for the job. The job does not fit slice. Its "
        "capacity type is Spot"
    )
    assert job.status()["attempts"][0]["pricePerHour"] == "0.80"

    # What the API server stores is what the operator wants, so it does not write again and again.
    version = nudge(job)
    assert job.read()["metadata"]["resourceVersion"] == version


def test_a_retry_uses_the_same_type_after_the_profile_was_changed(
    kube: Kube, namespace: str, kubelet: Kubelet, profile: str
) -> None:
    job = validated(kube, namespace, kubelet, profile)
    first = kubelet.pod_of(namespace, job.child(ATTEMPT))
    first.runs()
    body = kube.get(f"{PROFILES}/{profile}")
    body["spec"]["gpuTypes"] = [H100, SLICE]
    body["metadata"].pop("managedFields")
    kube.apply(f"{PROFILES}/{profile}", {**PROFILE, "metadata": {"name": profile}, "spec": body["spec"]})
    first.fails(FailureReason.GPU_OUT_OF_MEMORY, "The GPU ran out of memory.")

    second = kubelet.pod_of(namespace, job.child(SECOND)).pod
    assert second["spec"]["nodeSelector"] == L4["nodeSelector"]
    assert second["metadata"]["labels"][names.LABEL_GPU_TYPE] == "l4"
    kubelet.play(namespace, job.is_complete, job.selector)
    status = job.status()
    assert status["gpuType"]["name"] == "l4"
    assert [attempt["pricePerHour"] for attempt in status["attempts"]] == ["0.80", "0.80"]


def test_a_job_gets_the_type_that_it_names(kube: Kube, namespace: str, kubelet: Kubelet, profile: str) -> None:
    job = validated(kube, namespace, kubelet, profile, compute={"gpuType": "h100"})
    pod = kubelet.pod_of(namespace, job.child(ATTEMPT)).pod
    assert "nodeSelector" not in pod["spec"]
    chosen = wait_for("the type to be on record", lambda: job.status().get("gpuType"))
    assert (chosen["reason"], chosen["message"]) == ("Requested", "spec.compute.gpuType names h100.")


def test_another_resource_is_requested_from_another_device_plugin(
    kube: Kube, namespace: str, kubelet: Kubelet, profile: str
) -> None:
    # The prediction says that the job does not fit the slice. The preflight itself would end such a job.
    job = Job.create(kube, namespace, manifest(profileName=profile, compute={"gpuType": "slice"}))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    limits = kubelet.pod_of(namespace, job.child(ATTEMPT)).pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/mig-1g.10gb"] == "1"
    assert GPU not in limits
