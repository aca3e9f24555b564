"""Every field of a profile and of compute, in what the operator makes for a job on a real API server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_api.spec.job import Compute
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import ConditionType
from finetune_api.status.preflight import Estimate
from tests.integration import sample_status
from tests.integration.api_fields import paths, set_paths
from tests.integration.conftest import PROFILE as USUAL
from tests.integration.conftest import make_namespace
from tests.integration.finetune_operator.every_field import COMPUTE, JOB, NAME, PROFILE, URGENT
from tests.integration.finetune_operator.kubelet import Kubelet, PlayedPod
from tests.integration.finetune_operator.made import Made, containers
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.finetune_operator.running import pods_of
from tests.integration.finetune_operator.shown import SHOWN
from tests.integration.finetune_operator.volumes import Volumes
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, manifest
from tests.integration.kube import PROFILES, Kube, Object, RefusedError
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")
FOLDER = Path(__file__).parent
ELSEWHERE = {
    "profile.hub.allowed": "test_every_field.py::test_what_the_profile_does_not_allow_is_refused_by_name",
    "profile.claims.allowed": "test_every_field.py::test_what_the_profile_does_not_allow_is_refused_by_name",
    "profile.pods.priorityClassName": "test_pod_settings.py::test_every_pod_has_the_settings_of_the_profile",
    "compute.gpuType": "test_gpu_types.py::test_a_job_gets_the_type_that_it_names",
}
"""Fields that one job cannot show, and the test that uses them on a real API server."""
CLASSES = {
    f"/apis/scheduling.k8s.io/v1/priorityclasses/{NAME}": {"kind": "PriorityClass", "value": 7},
    f"/apis/scheduling.k8s.io/v1/priorityclasses/{URGENT}": {"kind": "PriorityClass", "value": 9},
    f"/apis/node.k8s.io/v1/runtimeclasses/{NAME}": {"kind": "RuntimeClass", "handler": "runc"},
}


def test_every_field_is_set_and_names_where_it_is_used() -> None:
    known = {f"profile.{path}" for path in paths(FineTuneProfileSpec)} | {f"compute.{path}" for path in paths(Compute)}
    profile, compute = FineTuneProfileSpec.model_validate(PROFILE), Compute.model_validate(COMPUTE)
    set_here = {f"profile.{path}" for path in set_paths(profile)} | {f"compute.{path}" for path in set_paths(compute)}
    used = {path: [name for name in (*SHOWN, *ELSEWHERE) if f"{path}.".startswith(f"{name}.")] for path in known}

    assert {path: name for path, name in used.items() if len(name) != 1} == {}, "name a test for each field"
    assert {name for found in used.values() for name in found} == {*SHOWN, *ELSEWHERE}, "of a field that is gone"
    assert {path for path in known - set_here if used[path][0] in SHOWN} == set(), "set these fields in every_field.py"
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (FOLDER / file).read_text(), test


@pytest.fixture(scope="module")
def tenant(kube: Kube, _operator: OperatorProcess) -> Iterator[str]:
    """A namespace with all that the profile and the job name."""
    _operator.start()
    namespace = make_namespace(kube)
    for path, body in CLASSES.items():
        version = path.removeprefix("/apis/").rpartition("/")[0].rpartition("/")[0]
        kube.apply(path, {"apiVersion": version, **body, "metadata": {"name": path.rpartition("/")[2]}})
    kube.apply(f"{PROFILES}/{NAME}", {**USUAL, "metadata": {"name": NAME}, "spec": PROFILE})
    core, roles = f"/api/v1/namespaces/{namespace}", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    kube.create(f"{core}/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME}})
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": NAME},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-trainer"},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}],
    }
    kube.create(f"{roles}/rolebindings", binding)
    volumes = Volumes(kube, namespace)
    volumes.claim("rows-of-2026", "ReadOnlyMany")
    volumes.claim("model-cache")
    yield namespace
    volumes.delete()
    for path in (*CLASSES, f"{PROFILES}/{NAME}", f"/api/v1/namespaces/{namespace}"):
        kube.delete(path)


def predicts(pod: PlayedPod) -> None:
    """The preflight says that the job fits both types, and that the spot type is cheaper."""
    fitting = [
        Estimate(gpu_type="spot", memory="14.0Gi", fits=True, seconds=1500, cost="0.33"),
        Estimate(gpu_type="h100", memory="14.0Gi", fits=True, seconds=600, cost="0.42"),
    ]
    pod.writer.condition(ConditionType.VALIDATED, True, "Valid", "240 rows are good.")
    preflight = sample_status.PREFLIGHT.model_copy(update={"estimate": fitting})
    pod.writer.result(preflight=preflight, resolved=sample_status.RESOLVED)
    pod.succeeds()


@pytest.fixture(scope="module")
def job(kube: Kube, tenant: str) -> Job:
    return Job.create(kube, tenant, manifest(**JOB))


@pytest.fixture(scope="module")
def made(kube: Kube, tenant: str, kubelet: Kubelet, job: Job) -> Made:
    """What the operator has made for a job from its start to the deletion of its checkpoints."""
    preflight = kubelet.pod_of(tenant, job.child(PREFLIGHT))
    preflight.runs()
    job.wait_for_reason("Validating")  # a preflight that is not seen to run is deleted once its result is there
    predicts(preflight)
    attempt, other = pods_of(kube, kubelet, job)
    service = kube.get(f"/api/v1/namespaces/{tenant}/services/{names.nodes_name(job.name, job.uid)}")
    jobs = job.batch_jobs()
    for pod in (attempt, other):
        pod.runs()
        pod.fails(FailureReason.LOSS_DIVERGED, "Step 12: the loss is not a number.")
    cleanup = kubelet.pod_of(tenant, job.child(names.CLEANUP))
    (config_map,) = job.config_maps()
    return Made(
        status=job.status(),
        bundle=json.loads(config_map["data"][names.BUNDLE_KEY]),
        service=service,
        jobs={**jobs, **job.batch_jobs()},
        pods={PREFLIGHT: preflight.pod, ATTEMPT: attempt.pod, names.CLEANUP: cleanup.pod},
    )


@pytest.mark.parametrize("field", SHOWN)
def test_a_field_shows_in_what_the_operator_makes(field: str, made: Made) -> None:
    look, seen = SHOWN[field]
    assert look(made) == seen


def test_a_revision_is_read_by_the_pods_and_cannot_be_changed(kube: Kube, job: Job, made: Made) -> None:
    assert made.bundle["spec"]["model"] == {"uri": "hf://acme/base", "revision": "v1.0"}
    with pytest.raises(RefusedError, match=r"only spec\.suspend and spec\.runPolicy can be changed"):
        kube.merge(job.path, {"spec": {"model": {"revision": "v2.0"}}})


def test_the_claims_of_a_job_are_mounted_by_its_preflight_only(made: Made) -> None:
    with_rows = [
        (step, name)
        for step, pod in made.pods.items()
        for name, container in containers(pod).items()
        if f"{names.CLAIM_FOLDER}/rows-of-2026" in {mount["mountPath"] for mount in container["volumeMounts"]}
    ]
    assert with_rows == [(PREFLIGHT, names.CONTAINER)]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            {"model": {"uri": "hf://other/base"}},
            "spec.model.uri: hf://other/base is not among the repositories that FineTuneProfile every-field allows. It "
            "allows acme/*. Use one of these repositories, or add other/base to spec.hub.allowed of the profile.",
        ),
        (
            {"dataset": {"train": [{"uri": "hf://datasets/acme/rows/a.jsonl"}]}},
            "spec.dataset.train[0].uri: hf://datasets/acme/rows is not among the repositories that FineTuneProfile "
            "every-field allows.",
        ),
        (
            {"dataset": {"train": [{"uri": "pvc://secrets/a.jsonl"}]}},
            "spec.dataset.train[0].uri: PersistentVolumeClaim secrets is not among the claims that FineTuneProfile "
            "every-field allows. It allows rows-*. Use one of these claims, or add secrets to spec.claims.allowed of "
            "the profile.",
        ),
    ],
    ids=["model", "rows", "claim"],
)
def test_what_the_profile_does_not_allow_is_refused_by_name(
    kube: Kube, namespace: str, tenant: str, spec: Object, said: str
) -> None:
    job = Job.create(kube, namespace, manifest(profileName=NAME, **spec))
    job.assert_failed(FailureReason.SPEC_INVALID, said)
    assert job.children() == {}


def test_a_hub_without_settings_is_the_public_one_without_a_token(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    body = {**USUAL, "metadata": {"name": namespace}, "spec": {**USUAL["spec"], "hub": {}}}
    kube.create(PROFILES, body)
    job = Job.create(kube, namespace, manifest(profileName=namespace, model={"uri": "hf://any/base"}))
    (trainer,) = kubelet.pod_of(namespace, job.child(PREFLIGHT)).pod["spec"]["containers"]
    variables = {variable["name"]: variable.get("value") for variable in trainer["env"]}
    assert variables["HF_ENDPOINT"] == "https://huggingface.co"
    assert names.HUB_FOLDER not in str(trainer["volumeMounts"])
    kube.delete(f"{PROFILES}/{namespace}")


def test_a_job_that_reads_no_hub_gets_no_token_and_its_memory_is_also_for_a_preflight(
    kube: Kube, namespace: str, tenant: str
) -> None:
    job = Job.create(kube, namespace, manifest(profileName=NAME, compute={"memory": "48Gi"}))
    spec = wait_for("the preflight", lambda: job.batch_jobs().get(PREFLIGHT))["spec"]["template"]["spec"]
    assert "shared-token" not in str(spec["volumes"])
    assert spec["containers"][0]["resources"]["limits"]["memory"] == "48Gi"
