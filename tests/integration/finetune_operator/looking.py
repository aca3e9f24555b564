"""Waits until the operator has looked at a job. It decides from its store, so no request shows that it looks."""

from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import Job, manifest
from tests.integration.kube import Kube
from tests.integration.waiting import wait_for

DECISIONS = "finetune_operator_reconcile_duration_seconds_count"
QUEUE = "kueue.x-k8s.io/queue-name"


def nudge(job: Job, operator: OperatorProcess) -> None:
    """Change a label that decisions read, and wait until the operator has decided once more."""
    before = operator.metric(DECISIONS)
    job.kube.merge(job.path, {"metadata": {"labels": {QUEUE: f"queue-{before:.0f}"}}})
    wait_for("the operator to decide", lambda: operator.metric(DECISIONS), lambda count: count > before)


def settle(kube: Kube, namespace: str, name: str) -> None:
    """Wait until the operator has decided a job created just now: it decides the jobs of a namespace in order."""
    job = Job.create(kube, namespace, manifest(name, profileName="none"))
    job.wait_for_reason("WaitingForDependency")
    kube.delete(job.path)
