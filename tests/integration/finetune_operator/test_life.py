"""A FineTuneJob from creation to its end, as a tenant, a pipeline and a platform team see it."""

from collections.abc import Iterator

import pytest

from devcluster import Cluster
from finetune_api import names
from finetune_api.bundle import Bundle
from tests.integration import sample_status
from tests.integration.api_proxy import ApiProxy
from tests.integration.conftest import PROFILE, make_namespace
from tests.integration.finetune_operator.kubelet import NODE, Kubelet
from tests.integration.finetune_operator.looking import DECISIONS, nudge, settle
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import ATTEMPT, GPU, PREFLIGHT, Job, kstatus, manifest
from tests.integration.kube import BATCH_JOBS, PROFILES, Kube, Object, RefusedError
from tests.integration.sample_status import VERDICT
from tests.integration.waiting import wait_for

ERRORS, RESTARTS = "finetune_operator_reconcile_errors_total", "finetune_operator_watch_restarts_total"
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}


@pytest.fixture(scope="module")
def finished(kube: Kube, proxy: ApiProxy, _operator: OperatorProcess, kubelet: Kubelet) -> Iterator[Job]:
    """A job that is Complete, for all tests that only look."""
    namespace = make_namespace(kube)
    _operator.start()
    body = manifest("finished")
    body["metadata"]["labels"] = QUEUE
    job = Job.create(kube, namespace, body)
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).runs()
    job.wait_for_reason("Validating")  # a preflight that is not seen to run is deleted once its result is there
    kubelet.play(namespace, job.is_complete)
    yield job
    kube.delete(f"/api/v1/namespaces/{namespace}")


def test_every_step_shows_in_state_stage_and_the_conditions_a_pipeline_reads(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    def stands(reason: str) -> tuple[str | None, str | None, str]:
        status = job.wait_for_reason(reason)
        return status.get("state"), status.get("stage"), kstatus(job.read())

    job = Job.create(kube, namespace, manifest())
    preflight = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    assert stands("PreflightPending") == ("Pending", "Preflight", "InProgress")
    preflight.runs()
    assert stands("Validating") == ("Validating", "Preflight", "InProgress")
    preflight.says_all()
    preflight.succeeds()
    attempt = kubelet.pod_of(namespace, job.child(ATTEMPT))
    assert stands("WaitingForGPU") == ("Queued", None, "InProgress")
    attempt.finds_no_node("0/8 nodes are available: 8 Insufficient nvidia.com/gpu.")
    wait_for("the scheduler's word", job.ready, lambda c: "Insufficient nvidia.com/gpu" in c.get("message", ""))
    attempt.runs()
    assert stands("Training") == ("Running", "Training", "InProgress")
    attempt.says_it_trained()
    assert stands("Evaluating") == ("Running", "Evaluating", "InProgress")
    attempt.says_it_evaluated()
    assert stands("Publishing") == ("Running", "Publishing", "InProgress")
    attempt.says_it_published()
    attempt.succeeds()
    assert stands("Succeeded") == ("Complete", None, "Current")
    assert job.ready()["message"] == VERDICT
    assert [(event["type"], event["reason"]) for event in job.events()] == [("Normal", "Succeeded")]


def test_kubectl_wait_and_get_show_the_end(finished: Job, installed: Cluster) -> None:
    for condition in ("Complete", "Ready", "Validated", "Trained", "Evaluated"):
        installed.kubectl("wait", "-n", finished.namespace, "ftj/finished", f"--for=condition={condition}")
    row = installed.kubectl("get", "ftj", "-n", finished.namespace, "--no-headers").split()
    assert row[:6] == ["finished", "Complete", "24", "24", "0", "0.94"]


def test_the_attempt_is_on_record(finished: Job) -> None:
    status = finished.status()
    (attempt,) = status["attempts"]
    assert attempt.pop("startTime") <= attempt.pop("completionTime")
    assert attempt.pop("gpuSeconds") == status["gpuSeconds"] >= 0
    assert attempt.pop("podName").startswith(finished.child(ATTEMPT))
    assert attempt == {
        "number": 1,
        "name": finished.child(ATTEMPT),
        "reason": "Succeeded",
        "exitCode": 0,
        "nodeName": NODE,
        "stage": "Publishing",
        "lastStep": sample_status.TRAINING.step,
        "progressed": True,
    }
    assert status["counts"] == {"attempts": 1}


def test_every_field_of_the_status_has_one_writer(finished: Job) -> None:
    metadata = finished.read()["metadata"]
    written: dict[str, set[str]] = {}
    for entry in metadata["managedFields"]:
        if entry.get("subresource") == "status":
            status = entry["fieldsV1"]["f:status"]
            conditions = {key for key in status.pop("f:conditions", {}) if key.startswith("k:")}
            written[entry["manager"]] = {*status, *conditions}
    everything = [field for fields in written.values() for field in fields]
    assert len(everything) == len(set(everything))
    assert written["preflight"] == {"f:preflight", "f:resolved", 'k:{"type":"Validated"}'}
    assert written["attempt-1"] == {
        *("f:training", "f:evaluation", "f:artifacts"),
        *('k:{"type":"Trained"}', 'k:{"type":"Evaluated"}'),
    }
    assert set(written) == {"preflight", "attempt-1", "finetune-operator"}


def test_nothing_is_written_on_the_users_object_but_its_status(finished: Job) -> None:
    metadata = finished.read()["metadata"]
    assert metadata["labels"] == QUEUE
    assert not {"annotations", "finalizers", "ownerReferences"} & set(metadata)
    assert metadata["generation"] == 1


def test_only_the_attempt_asks_for_a_gpu_and_stands_in_the_queue(finished: Job) -> None:
    jobs = finished.batch_jobs()
    preflight, attempt = (jobs[step]["spec"]["template"]["spec"] for step in (PREFLIGHT, ATTEMPT))
    assert attempt["containers"][0]["resources"]["limits"][GPU] == "1"
    assert attempt["nodeSelector"] == PROFILE["spec"]["gpuTypes"][0]["nodeSelector"]
    assert [t for t in attempt["tolerations"] if t in PROFILE["spec"]["gpuTypes"][0]["tolerations"]]
    assert GPU not in str(preflight)
    assert "nodeSelector" not in preflight
    assert not [t for t in preflight["tolerations"] if t in PROFILE["spec"]["gpuTypes"][0]["tolerations"]]
    assert jobs[ATTEMPT]["metadata"]["labels"].items() >= QUEUE.items()
    assert not QUEUE.items() & jobs[PREFLIGHT]["metadata"]["labels"].items()


def test_every_child_is_owned_and_no_job_restarts_pods_itself(finished: Job) -> None:
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "name": finished.name,
        "uid": finished.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    jobs = list(finished.batch_jobs().values())
    assert [child["metadata"]["ownerReferences"] for child in [*jobs, *finished.config_maps()]] == [[owner]] * 3
    assert [(job["spec"]["backoffLimit"], job["spec"]["completions"]) for job in jobs] == [(0, 1)] * 2
    assert len(finished.pods()) == 2


def test_the_bundle_holds_the_spec_and_cannot_be_changed(finished: Job, kube: Kube) -> None:
    (config_map,) = finished.config_maps()
    bundle = Bundle.model_validate_json(config_map["data"][names.BUNDLE_KEY])
    assert bundle.job is not None
    assert (bundle.job.uid, bundle.spec.output.uri) == (finished.uid, finished.read()["spec"]["output"]["uri"])
    assert [storage.credentials_secret_name for storage in bundle.storages] == ["s3-keys"]
    with pytest.raises(RefusedError, match="immutable"):
        kube.merge(
            f"/api/v1/namespaces/{finished.namespace}/configmaps/{config_map['metadata']['name']}",
            {"data": {names.BUNDLE_KEY: "{}"}},
        )


def test_a_whole_life_costs_fifteen_requests_at_most(finished: Job, proxy: ApiProxy) -> None:
    calls = [call for call in proxy.calls if finished.namespace in call.path and not call.makes_groundwork]
    conflicts = [call for call in calls if call.writes_status and call.status == 409]
    # A pod wrote at the same moment: the job is read and decided again. Real pods write minutes apart. Without a
    # conflict, it is read twice: before the attempt is created, and before the job ends.
    reads = [call for call in calls if call.method == "GET" and call.path.endswith("/finetunejobs/finished")]
    outdated = max(0, len(reads) - 2 - len(conflicts))
    # A decision to train reads the bundle too.
    bundles = [call for call in calls if call.method == "GET" and "/configmaps/" in call.path]
    again = max(0, len(bundles) - 1)
    told = "\n".join(f"{call.method} {call.path} {call.status} {call.body}"[:600] for call in calls)
    assert outdated <= 2, told
    assert sum(call.makes("jobs") for call in calls) == 2
    assert sum(call.writes_status for call in calls) - len(conflicts) <= 7, told
    assert len(calls) - 2 * len(conflicts) - outdated - again <= 15, told


def test_progress_that_a_trainer_writes_causes_no_request(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    job = Job.create(kube, namespace, manifest())
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    attempt = kubelet.pod_of(namespace, job.child(ATTEMPT))
    attempt.runs()
    job.wait_for_reason("Training")
    settle(kube, namespace, "before")
    calls, decisions = len(proxy.calls), operator.metric(DECISIONS)
    for step in range(100):
        attempt.writer.result(training=sample_status.TRAINING.model_copy(update={"step": step}))
    settle(kube, namespace, "after")
    here = [call for call in proxy.calls[calls:] if namespace in call.path]  # other tests' jobs have the same name
    assert [call for call in here if job.name in call.path or job.uid in str(call.body)] == []
    # Both jobs of `settle` are decided when they are created, written and deleted. Other tests' jobs are decided too.
    assert operator.metric(DECISIONS) - decisions < 60


def test_a_look_that_finds_nothing_new_writes_nothing(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    job = Job.create(kube, namespace, manifest())
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).runs()
    job.wait_for_reason("Validating")
    nudge(job)
    before = len(proxy.writes(namespace))
    nudge(job)
    nudge(job)
    assert proxy.writes(namespace)[before:] == []


def test_the_namespace_gets_one_account_that_may_write_statuses(finished: Job, kube: Kube) -> None:
    name = names.TRAINER_SERVICE_ACCOUNT
    kube.get(f"/api/v1/namespaces/{finished.namespace}/serviceaccounts/{name}")
    binding = kube.get(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{finished.namespace}/rolebindings/{name}")
    assert binding["roleRef"]["name"] == name
    assert [subject["name"] for subject in binding["subjects"]] == [name]


def test_a_job_whose_attempt_a_queue_holds_back_waits_and_then_runs(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    def pods_of_attempt() -> list[Object]:
        return [pod for pod in job.pods() if names.LABEL_ATTEMPT in pod["metadata"]["labels"]]

    job = Job.create(kube, namespace, manifest())
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    kubelet.pod_of(namespace, job.child(ATTEMPT))
    attempt = f"{BATCH_JOBS.format(namespace)}/{job.child(ATTEMPT)}"
    kube.merge(attempt, {"spec": {"suspend": True}})
    wait_for("the pod to go", pods_of_attempt, lambda pods: not pods)
    assert job.wait_for_reason("Suspended")["state"] == "Queued"
    assert kube.get(attempt)["spec"]["suspend"] is True

    kube.merge(attempt, {"spec": {"suspend": False}})
    kubelet.play(namespace, job.is_complete)


def test_a_profile_that_is_applied_later_is_waited_for(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    job = Job.create(kube, namespace, manifest(profileName=namespace))
    assert job.wait_for_reason("WaitingForDependency")["state"] == "Pending"
    assert job.ready()["message"].startswith(f'spec.profileName: FineTuneProfile "{namespace}" does not exist. List')
    assert "create the job again" not in job.ready()["message"]
    kube.create(PROFILES, {**PROFILE, "metadata": {"name": namespace}})
    kubelet.pod_of(namespace, job.child(PREFLIGHT))
    kube.delete(f"{PROFILES}/{namespace}")


def test_a_profile_that_is_deleted_during_training_does_not_stop_it(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    kube.create(PROFILES, {**PROFILE, "metadata": {"name": namespace}})
    job = Job.create(kube, namespace, manifest(profileName=namespace))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    kubelet.pod_of(namespace, job.child(ATTEMPT)).runs()
    job.wait_for_reason("Training")
    kube.delete(f"{PROFILES}/{namespace}")
    kubelet.play(namespace, job.is_complete)


def forbid(kube: Kube, namespace: str, resource: str, quota: str) -> str:
    """A quota of none of `resource`, already in force. Returns its path."""
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    spec = {"hard": {resource: "0"}}
    kube.create(quotas, {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": quota}, "spec": spec})
    wait_for("the quota to count", lambda: kube.get(f"{quotas}/{quota}").get("status", {}).get("used"))
    return f"{quotas}/{quota}"


def test_a_quota_that_refuses_a_child_is_told_to_the_tenant_and_waited_out(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    quota = forbid(kube, namespace, "count/jobs.batch", "none")
    job = Job.create(kube, namespace, manifest())
    assert job.wait_for_reason("CreationRefused")["state"] == "Pending"
    message = job.ready()["message"]
    assert f"refused Job {job.child(PREFLIGHT)}: " in message
    assert "exceeded quota: none" in message
    assert "raise ResourceQuota none. The operator tries again by itself." in message

    kube.delete(quota)
    kubelet.play(namespace, job.is_complete, timeout=60)


def test_a_webhook_that_does_not_answer_is_told_to_the_tenant_and_waited_out(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    """As Kueue's, while Kueue is down: the API server then refuses every Job."""
    webhooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    hook = {
        "name": "jobs.example.dev",
        "clientConfig": {"url": "https://127.0.0.1:9/"},
        "failurePolicy": "Fail",
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    }
    path = f"{webhooks}/{namespace}"
    body = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    kube.create(webhooks, {**body, "metadata": {"name": namespace}, "webhooks": [hook]})
    try:
        wait_for("the webhook to count", lambda: refuses_jobs(kube, namespace))
        job = Job.create(kube, namespace, manifest())
        assert job.wait_for_reason("CreationRefused")["state"] == "Pending"
        assert 'failed calling webhook "jobs.example.dev"' in job.ready()["message"]
    finally:
        kube.delete(path)
    kubelet.play(namespace, job.is_complete, timeout=60)


def refuses_jobs(kube: Kube, namespace: str) -> bool:
    """Whether the API server refuses a Job. The Job is not kept."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "registry.example/main"}]}
    body = {"metadata": {"name": "probe"}, "spec": {"template": {"spec": pod}}}
    try:
        kube.create(f"{BATCH_JOBS.format(namespace)}?dryRun=All", body)
    except RefusedError:
        return True
    return False


def test_a_quota_that_refuses_a_pod_is_told_to_the_tenant_and_waited_out(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    quota = forbid(kube, namespace, "requests.nvidia.com/gpu", "gpus")
    job = Job.create(kube, namespace, manifest())
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    refusal = "exceeded quota: gpus, requested: requests"
    wait_for("the refusal", job.ready, lambda ready: refusal in ready.get("message", ""))
    assert job.status()["state"] == "Queued"

    kube.delete(quota)
    kubelet.play(namespace, job.is_complete, timeout=90)


def test_the_tenants_own_service_account_runs_the_pods_once_it_may_report(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    kube.create(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "irsa"}})
    job = Job.create(kube, namespace, manifest(compute={"serviceAccountName": "irsa"}))
    job.wait_for_reason("WaitingForDependency")
    assert f"--clusterrole finetune-trainer --serviceaccount {namespace}:irsa" in job.ready()["message"]
    assert job.children() == {}

    kube.create(
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "irsa-reports"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-trainer"},
            "subjects": [{"kind": "ServiceAccount", "name": "irsa", "namespace": namespace}],
        },
    )
    pod = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    assert pod.pod["spec"]["serviceAccountName"] == "irsa"
    assert kube.find(f"{accounts}/{names.TRAINER_SERVICE_ACCOUNT}") is None


def test_the_operator_ends_on_sigterm_and_goes_on_where_it_was(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet
) -> None:
    job = Job.create(kube, namespace, manifest())
    job.wait_for_reason("PreflightPending")
    assert operator.stop() == 0
    kubelet.advance(namespace)
    operator.start()
    kubelet.play(namespace, job.is_complete)


def test_an_api_server_that_goes_away_for_a_while_costs_nothing(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    job = Job.create(kube, namespace, manifest())
    preflight = kubelet.pod_of(namespace, job.child(PREFLIGHT))
    proxy.is_cut = True
    proxy.refused = 0
    preflight.runs()
    preflight.says_all()
    preflight.succeeds()
    wait_for("the operator to be refused", lambda: proxy.refused)
    proxy.is_cut = False
    kubelet.play(namespace, job.is_complete, timeout=90)


def test_an_api_server_that_asks_to_wait_slows_the_operator_down_and_breaks_nothing(
    kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    errors, restarts = operator.metric(ERRORS), operator.metric(RESTARTS)
    proxy.busy = 5
    job = Job.create(kube, namespace, manifest())
    kubelet.play(namespace, job.is_complete, timeout=90)
    assert proxy.busy == 0
    assert operator.metric(ERRORS) - errors >= 1
    assert operator.metric(RESTARTS) == restarts
    assert job.status()["counts"] == {"attempts": 1}
    assert [event["reason"] for event in job.events()] == ["Succeeded"]
