"""Waits until the operator has looked at a job. It decides from its store, so no request shows that it looks."""

from uuid import uuid4

from finetune_api import names
from tests.integration.jobs import Job, manifest
from tests.integration.kube import Kube

DECISIONS = "finetune_operator_reconcile_duration_seconds_count"
ELSEWHERE = "default"
"""A namespace of no test: what is written there belongs to no job that a test looks at."""


def nudge(job: Job) -> str:
    """Change a label that decisions read, and wait until the operator has decided this job once more. Returns the
    job's resourceVersion after the change.

    The count of decisions cannot tell: it counts those of all jobs. One watch shows both changes in their order, and
    the namespaces take turns, so that the job that was changed first is decided first."""
    name = f"look-{uuid4().hex[:8]}"
    changed = job.kube.merge(job.path, {"metadata": {"labels": {names.LABEL_PRIORITY_CLASS: name}}})
    settle(job.kube, ELSEWHERE, name)
    return str(changed["metadata"]["resourceVersion"])


def settle(kube: Kube, namespace: str, name: str) -> None:
    """Wait until the operator has decided a job created just now: it decides the jobs of a namespace in order."""
    job = Job.create(kube, namespace, manifest(name, profileName="none"))
    job.wait_for_reason("WaitingForDependency")
    kube.delete(job.path)
