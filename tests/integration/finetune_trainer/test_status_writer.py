"""What a real API server makes of the trainer's applies. Which pod may write what is in charts/test_policy.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from finetune_api.bundle import JobIdentity
from finetune_api.status.job import PREFLIGHT_MANAGER, ConditionType, attempt_manager
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import StopRequested, Superseded
from finetune_trainer.pod.status import refusals
from finetune_trainer.pod.status.status_writer import StatusWriter
from tests.integration import sample_status
from tests.integration.api_proxy import ApiProxy
from tests.integration.jobs import Job, manifest
from tests.integration.kube import JOBS, Kube
from tests.integration.waiting import wait_for

MakeWriter = Callable[..., StatusWriter]


@pytest.fixture
def account(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """The mounted files of a ServiceAccount that may write every status."""
    kube.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "writer"}})
    bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    binding = {
        "metadata": {"name": f"{namespace}-writer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "writer", "namespace": namespace}],
    }
    kube.create(bindings, binding)
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/writer/token"
    (tmp_path / "token").write_text(kube.create(path, {"spec": {"audiences": []}})["status"]["token"])
    (tmp_path / "ca.crt").symlink_to(kube.authority)
    yield tmp_path
    kube.delete(f"{bindings}/{namespace}-writer")


@pytest.fixture
def job(kube: Kube, namespace: str) -> Job:
    return Job.create(kube, namespace, manifest())


@pytest.fixture
def proxy(kube: Kube) -> Iterator[ApiProxy]:
    """Passes requests of a pod on, also those whose answer the pod does not wait for."""
    proxy = ApiProxy(kube.server, kube.authority)
    yield proxy
    proxy.close()


@pytest.fixture
def make_writer(account: Path) -> MakeWriter:
    def make(job: Job, manager: str, uid: str | None = None) -> StatusWriter:
        identity = JobIdentity(namespace=job.namespace, name=job.name, uid=uid or job.uid)
        return StatusWriter(identity, manager, account, job.kube.server)

    return make


def of_pods(job: Job) -> dict[str, str]:
    """The conditions that pods write. An operator that runs meanwhile writes others."""
    own = (ConditionType.VALIDATED, ConditionType.TRAINED, ConditionType.EVALUATED)
    return {type: status for type, status in job.conditions().items() if type in own}


def test_preflight_and_attempt_do_not_remove_each_others_fields_and_conditions(
    job: Job, make_writer: MakeWriter
) -> None:
    preflight, attempt = make_writer(job, PREFLIGHT_MANAGER), make_writer(job, attempt_manager(1))
    preflight.condition(ConditionType.VALIDATED, True, "DataValid", "Good.")
    preflight.result(preflight=sample_status.PREFLIGHT, resolved=sample_status.RESOLVED)
    attempt.progress(training=sample_status.TRAINING)
    attempt.condition(ConditionType.TRAINED, True, "Trained", "Done.")
    attempt.result(artifacts=sample_status.ARTIFACTS)
    assert job.status().keys() >= {"preflight", "resolved", "training", "artifacts"}
    assert of_pods(job) == {"Validated": "True", "Trained": "True"}


def test_an_apply_that_arrives_after_the_results_does_not_take_them_back(
    job: Job, account: Path, proxy: ApiProxy
) -> None:
    def wait(event: Event) -> None:
        assert event.wait(60)

    released, arrived = Event(), Event()
    identity = JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid)
    writer = StatusWriter(identity, attempt_manager(1), account, proxy.address)
    writer.progress(training=sample_status.TRAINING)
    proxy.hold(lambda call: call.writes_status, lambda: wait(released))
    proxy.after(lambda call: call.writes_status and "artifacts" not in call.body["status"], arrived.set)

    writer.progress(training=sample_status.TRAINING.model_copy(update={"step": 25}))
    writer.result(artifacts=sample_status.ARTIFACTS)
    released.set()

    wait(arrived)
    assert job.status().keys() >= {"artifacts", "training"}


def test_a_replaced_attempt_stops_with_the_cause_and_changes_nothing(job: Job, make_writer: MakeWriter) -> None:
    first, second = make_writer(job, attempt_manager(1)), make_writer(job, attempt_manager(2))
    first.progress(training=sample_status.TRAINING)
    second.progress(training=sample_status.TRAINING.model_copy(update={"attempt": 2}))
    with pytest.raises(Superseded):
        first.progress(training=sample_status.TRAINING.model_copy(update={"step": 23}))
    assert (job.status()["training"]["attempt"], job.status()["training"]["step"]) == (2, 24)


def test_a_later_attempt_writes_all_its_fields_and_shows_none_of_the_earlier_one(
    job: Job, make_writer: MakeWriter
) -> None:
    first, second = make_writer(job, attempt_manager(1)), make_writer(job, attempt_manager(2))
    first.condition(ConditionType.TRAINED, False, "Training", "Step 24.")
    first.condition(ConditionType.EVALUATED, False, "Evaluating", "Almost.")
    first.result(training=sample_status.TRAINING, evaluation=sample_status.EVALUATION)
    begun = sample_status.TRAINING.model_copy(
        update={"attempt": 2, "step": 0, "loss": None, "epoch": None, "learning_rate": None}
    )

    second.progress(training=begun)
    shown = job.status()
    assert "loss" not in shown["training"]
    assert "evaluation" not in shown
    assert of_pods(job) == {}

    second.progress(training=begun.model_copy(update={"step": 1, "loss": 7.5, "epoch": 0.1, "learning_rate": 0.5}))
    assert job.status()["training"]["loss"] == 7.5
    with pytest.raises(Superseded, match="attempt-2"):
        first.progress(training=sample_status.TRAINING.model_copy(update={"step": 23}))


def test_a_pod_whose_job_was_deleted_or_created_again_stops_with_the_cause(
    job: Job, kube: Kube, namespace: str, make_writer: MakeWriter
) -> None:
    writer = make_writer(job, attempt_manager(1))
    kube.delete(job.path)
    with pytest.raises(Superseded, match="deleted"):
        writer.progress(training=sample_status.TRAINING)
    kube.create(JOBS.format(namespace), manifest())
    with pytest.raises(Superseded, match="another job was created with its name"):
        writer.progress(training=sample_status.TRAINING)


@pytest.mark.usefixtures("unstopped")
def test_the_token_of_a_deleted_service_account_stays_invalid_and_stops_the_pod(
    job: Job, kube: Kube, namespace: str, account: Path, make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, accounts = make_writer(job, attempt_manager(1)), f"/api/v1/namespaces/{namespace}/serviceaccounts"
    writer.progress(training=sample_status.TRAINING)
    kube.delete(f"{accounts}/writer")
    kube.create(accounts, {"metadata": {"name": "writer"}})

    def write() -> bool:
        writer.progress(training=sample_status.TRAINING)
        return bool(writer._refusals)

    wait_for("the API server to forget the token", write)
    new = kube.create(f"{accounts}/writer/token", {"spec": {"audiences": []}})["status"]["token"]
    old = (account / "token").read_text()
    (account / "token").write_text(new)
    assert not write(), "the token that the kubelet mounts is used"

    (account / "token").write_text(old)
    monkeypatch.setattr(refusals, "TOKEN_PATIENCE_SECONDS", 0.0)
    with pytest.raises(StopRequested):
        write()
    assert "HTTP 401: Unauthorized" in termination.why_stopped()


def test_a_loss_that_is_not_a_number_does_not_prevent_the_apply(job: Job, make_writer: MakeWriter) -> None:
    make_writer(job, attempt_manager(1)).result(
        training=sample_status.TRAINING.model_copy(update={"loss": float("nan")})
    )
    assert "loss" not in job.status()["training"]
