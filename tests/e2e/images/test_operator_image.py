"""The operator as a platform team gets it: the image built from Dockerfile.operator, installed with the chart, with no
more rights than the chart gives, in a namespace that enforces the restricted Pod Security Standard."""

import json
from pathlib import Path
from typing import Any

import pytest

from devcluster import Cluster, ClusterError
from finetune_api import names

pytestmark = pytest.mark.images

CHART = Path(__file__).parents[3] / "charts" / "finetune-operator"
NAMESPACE, DEPLOYMENT = "finetune-system", "deployment/finetune-operator"


def apply_job(cluster: Cluster, name: str, profile: str) -> None:
    job = {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {"name": name},
        "spec": {
            "profileName": profile,
            "model": {"uri": "s3://models/base"},
            "dataset": {"train": [{"uri": "s3://data/rows.jsonl"}]},
            "output": {"uri": "s3://models/tuned"},
        },
    }
    cluster.kubectl("apply", "-f", "-", input=json.dumps(job))


def wait_for(cluster: Cluster, what: str, condition: str, namespace: str = "default") -> None:
    """Waits with kubectl. On a timeout, the error has the operator's pod and its log."""
    try:
        cluster.kubectl("--namespace", namespace, "wait", what, f"--for={condition}", "--timeout=150s")
    except ClusterError as error:
        pods = cluster.kubectl("--namespace", NAMESPACE, "describe", "pods")
        log = cluster.kubectl("--namespace", NAMESPACE, "logs", DEPLOYMENT, "--tail=30")
        pytest.fail(f"{error}\n{pods}\n{log}")


def status_of(cluster: Cluster, job: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(cluster.kubectl("get", "finetunejob", job, "-o", "json"))["status"]
    return status


@pytest.fixture(scope="module")
def installed(closed_cluster: Cluster) -> Cluster:
    """The cluster with the chart in it and the operator available."""
    closed_cluster.kubectl("create", "namespace", NAMESPACE)
    for namespace in (NAMESPACE, "default"):
        closed_cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    images = "image.repository=localhost/finetune-operator,image.pullPolicy=Never,trainerImage.pullPolicy=Never"
    closed_cluster.helm("install", "finetune-operator", str(CHART), "--namespace", NAMESPACE, "--set", images)
    wait_for(closed_cluster, DEPLOYMENT, "condition=Available", NAMESPACE)
    return closed_cluster


def test_the_deployment_becomes_available(installed: Cluster) -> None:
    pods = json.loads(installed.kubectl("--namespace", NAMESPACE, "get", "pods", "-o", "json"))["items"]
    assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [0]


def test_the_image_runs_as_a_non_root_user_and_contains_only_the_operator(installed: Cluster) -> None:
    code = "import os, importlib.util as u; print(os.getuid(), u.find_spec('finetune_trainer'), u.find_spec('torch'))"
    printed = installed.kubectl("--namespace", NAMESPACE, "exec", DEPLOYMENT, "--", "python", "-c", code)
    assert printed.split() == ["65532", "None", "None"]


def test_a_job_with_a_missing_profile_fails_with_a_message(installed: Cluster) -> None:
    apply_job(installed, "lost", profile="absent")
    wait_for(installed, "finetunejob/lost", "jsonpath={.status.state}=Failed")
    status = status_of(installed, "lost")
    assert status["observedGeneration"] == 1
    assert any('FineTuneProfile "absent" does not exist' in condition["message"] for condition in status["conditions"])


def test_a_job_under_the_charts_profile_gets_its_preflight_with_the_charts_rights(installed: Cluster) -> None:
    apply_job(installed, "tickets", profile="default")
    selector = f"{names.LABEL_JOB_NAME}=tickets"
    # The trainer's image is not here, so the preflight cannot run: how far it comes is what the operator may do.
    wait_for(installed, "finetunejob/tickets", "jsonpath={.status.state}=Failed")
    (pod,) = json.loads(installed.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    assert pod["spec"]["containers"][0]["image"] == "finetune-trainer:0.1.0"
    assert pod["spec"]["serviceAccountName"] == names.TRAINER_SERVICE_ACCOUNT
    installed.kubectl("get", "rolebinding", names.TRAINER_SERVICE_ACCOUNT)
    reasons = {condition["reason"] for condition in status_of(installed, "tickets")["conditions"]}
    assert reasons & {"ImagePullFailed", "RegistryUnavailable"}  # by what the machine can reach
    log = installed.kubectl("--namespace", NAMESPACE, "logs", DEPLOYMENT)
    assert "forbidden" not in log.lower()
