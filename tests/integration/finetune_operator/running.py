"""The pods of an attempt, and a job whose first attempt runs: where tests of stops and retries begin."""

from finetune_api import names
from finetune_api.reasons import FailureReason
from tests.integration.finetune_operator.kubelet import Kubelet, PlayedPod
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import PODS, Kube, Object
from tests.integration.waiting import wait_for

SECOND = "a2"
"""The child that is the second attempt."""
DELETED = {
    FailureReason.EVICTED.value: "was deleted before its work was done",
    FailureReason.PREEMPTED.value: "asked to stop",
}
"""What an attempt ends with whose pod somebody has deleted, and its words. It is Preempted if its Job is seen to fail
first: then the pod's container, which was asked to stop, tells why."""


def starting(kube: Kube, namespace: str, kubelet: Kubelet, **spec: object) -> tuple[Job, PlayedPod]:
    """Returns a job that is validated, and the pod of its first attempt, which does not run yet."""
    job = Job.create(kube, namespace, manifest(**spec))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    return job, kubelet.pod_of(namespace, job.child(ATTEMPT))


def training(kube: Kube, namespace: str, kubelet: Kubelet, **spec: object) -> tuple[Job, PlayedPod]:
    """Returns a job whose first attempt runs, and the pod of that attempt."""
    job, pod = starting(kube, namespace, kubelet, **spec)
    pod.runs()
    job.wait_for_reason("Training")
    return job, pod


def pods_of(kube: Kube, kubelet: Kubelet, job: Job, attempt: str = ATTEMPT, count: int = 2) -> list[PlayedPod]:
    """Returns the pods of an attempt on several nodes in the order of their index, once the Job controller has made
    all of them."""
    selector = f"batch.kubernetes.io/job-name={job.child(attempt)}"

    def there() -> list[Object]:
        found = kube.list(PODS.format(job.namespace), labelSelector=selector)
        # A pod that is gone stays until the Job controller has counted it.
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    found = wait_for(f"the pods of {job.name}", there, lambda pods: len(pods) == count)
    return [kubelet.played(pod) for pod in sorted(found, key=lambda pod: pod["metadata"]["labels"][names.LABEL_INDEX])]
