"""A job whose first attempt runs: where tests of stops and retries begin."""

from tests.integration.finetune_operator.kubelet import Kubelet, PlayedPod
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import Kube

SECOND = "a2"
"""The child that is the second attempt."""


def training(kube: Kube, namespace: str, kubelet: Kubelet, **spec: object) -> tuple[Job, PlayedPod]:
    """Returns a job whose first attempt runs, and the pod of that attempt."""
    job = Job.create(kube, namespace, manifest(**spec))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    pod = kubelet.pod_of(namespace, job.child(ATTEMPT))
    pod.runs()
    job.wait_for_reason("Training")
    return job, pod
