"""Who writes which part of a status. The pods are real to the API server: it issues their tokens, and it alone says
whose they are. RBAC lets each of them patch every status of the namespace, so a refusal here is the policy's."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from finetune_api import names
from finetune_api.bundle import JobIdentity
from finetune_trainer.pod.failure import Superseded
from finetune_trainer.pod.status.status_writer import StatusWriter
from tests.integration import sample_status
from tests.integration.charts.conftest import Shard, api_with, token_of

Object = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
REFUSED_BY_POLICY = "ValidatingAdmissionPolicy 'finetune-trainer'"


def condition(type: str, status: str = "True") -> Object:
    return {"type": type, "status": status, "reason": "Test", "message": "", "lastTransitionTime": NOW}


PREFLIGHT = {"rows": 400, "duplicates": 3, "observedTime": NOW}
RESOLVED = {
    "method": "LoRA", "learningRate": 0.001, "warmupSteps": 10, "totalSteps": 50, "maxSequenceLength": 256,
    "microBatchTokens": 2048, "maxNewTokens": 64, "promptFormat": "ChatTemplate", "parameters": 135_000_000,
}  # fmt: skip
TRAINING = {"attempt": 1, "step": 3, "totalSteps": 50, "loss": 1.5, "observedTime": NOW}
EVALUATION = {"rows": 40, "base": {"loss": 2.0}, "tuned": {"loss": 0.5}, "observedTime": NOW}
ARTIFACTS = {"adapter": "s3://b/a", "report": "s3://b/r", "manifest": "s3://b/m", "digest": "0" * 64}
OPERATORS = {
    "observedGeneration": 1,
    "state": "Running",
    "stage": "Training",
    "conditions": [condition("Ready", "False"), condition("Reconciling")],
    "counts": {"attempts": 1},
    "attempts": [{"number": 1, "name": "one"}],
}


class Writer:
    """Writes statuses of FineTuneJobs as one user."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    def apply(self, job: Object, status: Object, manager: str = "test", force: bool = True) -> Object:
        """Server-side apply, as operator and trainers do it."""
        body = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "status": status}
        query = [("fieldManager", manager), ("force", str(force).lower())]
        return self.patch(job, body, "application/apply-patch+yaml", query)

    def patch(self, job: Object, body: Any, kind: str, query: Any = ()) -> Object:
        """Returns the status after a patch of any kind. Raises ApiException."""
        metadata = job["metadata"]
        path = f"/apis/{names.API_VERSION}/namespaces/{metadata['namespace']}/{names.JOBS}/{metadata['name']}/status"
        headers = {"Content-Type": kind}
        answer = self._api.call_api(
            *self._api.param_serialize(
                "PATCH", path, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"]
            )
        )
        content = json.loads(answer.read())
        if answer.status >= 300:
            raise client.ApiException(status=answer.status, reason=content["message"])
        status: Object = content["status"]
        return status


def writer_with(api: client.ApiClient, token: str) -> Writer:
    """A writer who has nothing but this token."""
    return Writer(api_with(api, token))


def create_job(api: client.ApiClient, namespace: str, name: str) -> Object:
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "s3://models/base"},
            "dataset": {"train": [{"uri": "s3://data/rows.jsonl"}]},
            "output": {"uri": "s3://models/tuned"},
        },
    }
    job: Object = client.CustomObjectsApi(api).create_namespaced_custom_object(
        names.GROUP, names.VERSION, namespace, names.JOBS, body
    )
    return job


@pytest.fixture(scope="module")
def admin(api: client.ApiClient) -> Writer:
    return Writer(api)


_numbers = itertools.count(1)


@pytest.fixture
def make_job(tenant: str, api: client.ApiClient, admin: Writer) -> Callable[..., Object]:
    """Makes a FineTuneJob with what the operator has written of its status."""

    def make(name: str | None = None, status: Object = OPERATORS) -> Object:
        job = create_job(api, tenant, name or f"job-{next(_numbers)}")
        admin.apply(job, status, "finetune-operator")
        return job

    return make


@pytest.fixture
def job(make_job: Callable[..., Object]) -> Object:
    return make_job()


@pytest.fixture
def token_of_pod(tenant: str, api: client.ApiClient) -> Callable[..., str]:
    """Makes a pod and returns its token."""
    core = client.CoreV1Api(api)

    def make(name: str, account: str = names.TRAINER_SERVICE_ACCOUNT) -> str:
        pod = {
            "metadata": {"name": name},
            "spec": {"serviceAccountName": account, "containers": [{"name": "trainer", "image": "none"}]},
        }
        made = core.create_namespaced_pod(tenant, pod)
        reference = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": made.metadata.uid}
        request = {"spec": {"audiences": [], "boundObjectRef": reference}}
        token: str = core.create_namespaced_service_account_token(account, tenant, request).status.token
        return token

    return make


@pytest.fixture
def pod_named(api: client.ApiClient, token_of_pod: Callable[..., str]) -> Callable[..., Writer]:
    """Makes a pod and returns the writer who has its token."""
    return lambda *about: writer_with(api, token_of_pod(*about))


def pod_name(job: Object, step: str) -> str:
    """The name Kubernetes gives the pod of a job's step: cut at 58 characters, then five at random."""
    prefix = names.child_prefix(job["metadata"]["name"], job["metadata"]["uid"])
    return f"{prefix}-{step}-"[:58] + f"{next(_numbers):05}"


@pytest.fixture
def preflight(job: Object, pod_named: Callable[..., Writer]) -> Writer:
    """The job's preflight pod."""
    return pod_named(pod_name(job, "preflight"))


@pytest.fixture
def attempt(job: Object, pod_named: Callable[..., Writer]) -> Writer:
    """The pod of the job's first attempt."""
    return pod_named(pod_name(job, "a1"))


def test_the_preflight_writes_its_findings_next_to_the_operators_fields(job: Object, preflight: Writer) -> None:
    findings = {"preflight": PREFLIGHT, "resolved": RESOLVED, "conditions": [condition("Validated")]}
    status = preflight.apply(job, findings, "preflight")
    assert status["preflight"] == PREFLIGHT
    assert status["resolved"] == RESOLVED
    assert {c["type"] for c in status["conditions"]} == {"Ready", "Reconciling", "Validated"}
    assert status["state"] == "Running"


@pytest.mark.parametrize(
    "status", [{"training": TRAINING}, {"preflight": PREFLIGHT}, {"conditions": [condition("Trained")]}]
)
def test_a_cleanup_may_write_nothing(status: Object, job: Object, pod_named: Callable[..., Writer]) -> None:
    cleanup = pod_named(pod_name(job, names.CLEANUP))
    with pytest.raises(client.ApiException, match=REFUSED_BY_POLICY):
        cleanup.apply(job, status, "cleanup")


def test_an_attempt_may_write_its_progress_repeatedly(job: Object, attempt: Writer) -> None:
    attempt.apply(job, {"training": TRAINING}, "attempt-1")
    for step in (4, 5):
        progress = {"training": TRAINING | {"step": step}, "conditions": [condition("Trained", "Unknown")]}
        status = attempt.apply(job, progress, "attempt-1", force=False)
        assert status["training"]["step"] == step
    result = {
        "training": TRAINING,
        "evaluation": EVALUATION,
        "artifacts": ARTIFACTS,
        "conditions": [condition("Trained"), condition("Evaluated")],
    }
    status = attempt.apply(job, result, "attempt-1", force=False)
    assert (status["evaluation"], status["artifacts"]) == (EVALUATION, ARTIFACTS)


def test_a_pod_may_remove_its_own_fields(job: Object, attempt: Writer) -> None:
    attempt.apply(job, {"training": TRAINING, "conditions": [condition("Trained")]}, "attempt-1")
    status = attempt.apply(job, {}, "attempt-1")
    assert "training" not in status
    assert {c["type"] for c in status["conditions"]} == {"Ready", "Reconciling"}


def test_a_pod_may_write_before_the_operator_does(
    make_job: Callable[..., Object], pod_named: Callable[..., Writer]
) -> None:
    job = make_job(status={})
    status = pod_named(pod_name(job, "preflight")).apply(job, {"conditions": [condition("Validated", "False")]})
    assert status["observedGeneration"] == -1


@pytest.mark.parametrize("step", ["preflight", "a1"])
def test_pods_of_a_job_with_the_longest_name_may_write(
    step: str, make_job: Callable[..., Object], pod_named: Callable[..., Writer]
) -> None:
    job = make_job(f"{step}-".ljust(40, "j"))
    own = {"preflight": PREFLIGHT} if step == "preflight" else {"training": TRAINING}
    assert own.items() <= pod_named(pod_name(job, step)).apply(job, own).items()


def test_an_attempt_with_a_number_of_two_digits_may_write(job: Object, pod_named: Callable[..., Writer]) -> None:
    assert pod_named(pod_name(job, "a10")).apply(job, {"training": TRAINING}, "attempt-10")["training"] == TRAINING


def test_a_pod_may_apply_an_operators_field_with_the_same_value(job: Object, attempt: Writer, admin: Writer) -> None:
    attempt.apply(job, {"state": "Running"}, "attempt-1")
    assert admin.apply(job, OPERATORS | {"state": "Complete"}, "finetune-operator")["state"] == "Complete"


@pytest.mark.parametrize(
    ("status", "named"),
    [
        ({"observedGeneration": 7}, "status.observedGeneration"),
        ({"state": "Complete"}, "status.state"),
        ({"stage": "Publishing"}, "status.stage"),
        ({"counts": {"attempts": 0}}, "status.counts"),
        ({"attempts": [{"number": 1, "name": "one", "reason": "Succeeded"}]}, "status.attempts"),
        ({"attempts": [{"number": 2, "name": "two"}]}, "status.attempts"),
        ({"gpuType": {"name": "h100", "reason": "Cheapest", "message": "m"}}, "status.gpuType"),
        ({"training": TRAINING}, "status.training"),
        ({"evaluation": EVALUATION}, "status.evaluation"),
        ({"artifacts": ARTIFACTS}, "status.artifacts"),
        ({"conditions": [condition("Ready")]}, "conditions Ready"),
        ({"conditions": [condition("Complete")]}, "conditions Complete"),
        ({"conditions": [condition("Trained")]}, "conditions Trained"),
        ({"conditions": [condition("Validated"), condition("Failed")]}, "conditions Failed"),
        ({"preflight": PREFLIGHT, "resolved": RESOLVED, "state": "Queued"}, "status.state"),
    ],
)
def test_the_preflight_may_not_write_other_fields(job: Object, preflight: Writer, status: Object, named: str) -> None:
    with pytest.raises(client.ApiException) as refused:
        preflight.apply(job, status, "preflight")
    assert refused.value.status == 403
    assert REFUSED_BY_POLICY in refused.value.reason
    assert refused.value.reason.endswith(named)


@pytest.mark.parametrize(
    ("status", "named"),
    [
        ({"observedGeneration": 7}, "status.observedGeneration"),
        ({"state": "Failed"}, "status.state"),
        ({"preflight": PREFLIGHT}, "status.preflight"),
        ({"resolved": RESOLVED}, "status.resolved"),
        ({"gpuType": {"name": "h100", "reason": "Cheapest", "message": "m"}}, "status.gpuType"),
        ({"conditions": [condition("Validated")]}, "conditions Validated"),
        ({"conditions": [condition("Reconciling", "False")]}, "conditions Reconciling"),
    ],
)
def test_an_attempt_may_not_write_other_fields(job: Object, attempt: Writer, status: Object, named: str) -> None:
    with pytest.raises(client.ApiException) as refused:
        attempt.apply(job, status | {"training": TRAINING}, "attempt-1")
    assert REFUSED_BY_POLICY in refused.value.reason
    assert refused.value.reason.endswith(named)


@pytest.mark.parametrize(
    ("body", "kind", "named"),
    [
        ([{"op": "remove", "path": "/status/state"}], "application/json-patch+json", "status.state"),
        ([{"op": "remove", "path": "/status/conditions/0"}], "application/json-patch+json", "conditions Ready"),
        ({"status": {"conditions": [condition("Trained")]}}, "application/merge-patch+json", "Ready, Reconciling"),
        ({"status": {"attempts": None}}, "application/merge-patch+json", "status.attempts"),
        ({"status": None}, "application/merge-patch+json", ""),
    ],
)
def test_a_pod_may_not_remove_a_field_of_the_operator(
    job: Object, attempt: Writer, body: Any, kind: str, named: str
) -> None:
    with pytest.raises(client.ApiException) as refused:
        attempt.patch(job, body, kind)
    assert REFUSED_BY_POLICY in refused.value.reason
    assert refused.value.reason.endswith(named)


def test_a_pod_with_the_operators_field_manager_may_not_remove_its_fields(job: Object, attempt: Writer) -> None:
    with pytest.raises(client.ApiException, match=REFUSED_BY_POLICY):
        attempt.apply(job, {"training": TRAINING}, "finetune-operator")


@pytest.mark.parametrize(
    "name",
    [
        lambda job, other: pod_name(other, "a1"),
        lambda job, other: f"{job['metadata']['name']}-00000000-a1-abcde",  # a job of this name that was recreated
        lambda job, other: f"{job['metadata']['name']}-a1-abcde",
        lambda job, other: "notebook",
    ],
    ids=["another job's", "an earlier job's", "without uid", "any"],
)
def test_a_pod_may_not_write_the_status_of_another_job(
    name: Callable[[Object, Object], str], make_job: Callable[..., Object], pod_named: Callable[..., Writer]
) -> None:
    job, other = make_job(), make_job()
    with pytest.raises(client.ApiException, match="may write the status of") as refused:
        pod_named(name(job, other)).apply(job, {"training": TRAINING})
    assert REFUSED_BY_POLICY in refused.value.reason


def test_the_trainer_of_a_job_that_was_made_again_stops_at_once(
    job: Object, api: client.ApiClient, token_of_pod: Callable[..., str], tmp_path: Path
) -> None:
    """It must not go on for the minutes for which other refusals are waited out: it would publish its results."""
    metadata = job["metadata"]
    earlier = JobIdentity(namespace=metadata["namespace"], name=metadata["name"], uid="00000000-1111")
    (tmp_path / "token").write_text(token_of_pod(f"{names.child_prefix(earlier.name, earlier.uid)}-a1-abcde"))
    (tmp_path / "ca.crt").symlink_to(api.configuration.ssl_ca_cert)
    writer = StatusWriter(earlier, "attempt-1", tmp_path, api.configuration.host)
    with pytest.raises(Superseded, match="another job was created with its name"):
        writer.progress(training=sample_status.TRAINING)


def test_a_pod_of_the_job_that_is_neither_preflight_nor_attempt_may_not_write(
    job: Object, pod_named: Callable[..., Writer]
) -> None:
    with pytest.raises(client.ApiException, match=r"may not change status\.training"):
        pod_named(pod_name(job, "shell")).apply(job, {"training": TRAINING})


def test_a_token_of_no_pod_may_not_write(tenant: str, job: Object, api: client.ApiClient) -> None:
    with pytest.raises(client.ApiException, match="a token that is not bound to a pod"):
        writer_with(api, token_of(names.TRAINER_SERVICE_ACCOUNT, tenant, api)).apply(job, {"training": TRAINING})


def test_the_policy_applies_to_a_tenants_own_service_account_too(
    tenant: str,
    job: Object,
    api: client.ApiClient,
    pod_named: Callable[..., Writer],
    trainer_account: Callable[..., str],
) -> None:
    pod = pod_named(pod_name(job, "a1"), trainer_account("with-cloud-role"))
    assert pod.apply(job, {"training": TRAINING})["training"] == TRAINING
    with pytest.raises(client.ApiException, match=REFUSED_BY_POLICY):
        pod.apply(job, {"state": "Complete"})


def test_the_operator_writes_everything_from_its_pod(
    installed: str, job: Object, preflight: Writer, api: client.ApiClient
) -> None:
    preflight.apply(job, {"preflight": PREFLIGHT, "conditions": [condition("Validated")]}, "preflight")
    whole = OPERATORS | {"state": "Failed", "conditions": [condition("Validated", "False"), condition("Failed")]}
    status = writer_with(api, token_of("finetune-operator", installed, api)).apply(job, whole, "finetune-operator")
    assert status["state"] == "Failed"
    assert {c["type"]: c["status"] for c in status["conditions"]} == {"Validated": "False", "Failed": "True"}


def test_the_operator_of_a_namespace_writes_everything_there(shard: Shard, api: client.ApiClient) -> None:
    operator = writer_with(api, token_of(shard.account, shard.system, api))
    for namespace in shard.namespaces:
        job = create_job(api, namespace, "job")
        assert operator.apply(job, OPERATORS, "finetune-operator")["state"] == "Running"


def test_the_operator_of_other_namespaces_writes_nothing(shard: Shard, job: Object, api: client.ApiClient) -> None:
    operator = writer_with(api, token_of(shard.account, shard.system, api))
    with pytest.raises(client.ApiException, match="cannot patch resource") as refused:
        operator.apply(job, {"state": "Complete"}, "finetune-operator")
    assert refused.value.status == 403


def test_the_operator_of_other_namespaces_is_held_like_a_trainer_if_it_is_bound_as_one(
    shard: Shard, tenant: str, job: Object, api: client.ApiClient
) -> None:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": names.TRAINER_SERVICE_ACCOUNT}
    subject = {"kind": "ServiceAccount", "name": shard.account, "namespace": shard.system}
    client.RbacAuthorizationV1Api(api).create_namespaced_role_binding(
        tenant, {"metadata": {"name": "by-mistake"}, "roleRef": role, "subjects": [subject]}
    )
    with pytest.raises(client.ApiException, match=REFUSED_BY_POLICY):
        writer_with(api, token_of(shard.account, shard.system, api)).apply(job, {"state": "Complete"})


def test_a_trainer_of_a_namespace_with_its_own_operator_is_held_too(shard: Shard, api: client.ApiClient) -> None:
    namespace, account = shard.namespaces[0], names.TRAINER_SERVICE_ACCOUNT
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    client.CoreV1Api(api).create_namespaced_service_account(namespace, {"metadata": {"name": account}})
    client.RbacAuthorizationV1Api(api).create_namespaced_role_binding(
        namespace, {"metadata": {"name": account}, "roleRef": role, "subjects": [subject]}
    )
    job = create_job(api, namespace, "held")
    with pytest.raises(client.ApiException, match="a token that is not bound to a pod"):
        writer_with(api, token_of(account, namespace, api)).apply(job, {"state": "Complete"})
