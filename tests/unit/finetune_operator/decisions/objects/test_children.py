"""The objects a job has: restricted pods, one owner, secrets as files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes.utils.quantity import parse_quantity

from finetune_api.bundle import Bundle
from finetune_api.names import LABEL_GPU_TYPE, LABEL_PRIORITY_CLASS, LABEL_QUEUE
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions.objects import bundles, children
from finetune_operator.decisions.objects.children import Try
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.worlds import PROFILE, SPEC, UID, fresh

DOCKERFILE = Path(__file__).parents[5] / "Dockerfile.trainer"
WORLD = fresh()
GPU = PROFILE.gpu_types[0]
JOBS = {
    "preflight": children.preflight_job(WORLD, SPEC, PROFILE),
    "attempt": children.attempt_job(WORLD, SPEC, PROFILE, Try(1, GPU)),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_every_pod_passes_the_restricted_standard(job: Object) -> None:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_every_job_is_the_finetunejobs_own_and_never_retried_by_kubernetes(job: Object) -> None:
    (owner,) = job["metadata"]["ownerReferences"]

    assert (owner["uid"], owner["controller"]) == (UID, True)
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["podReplacementPolicy"] == "Failed", "a resumed Job would train twice at a time"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_secrets_are_files_and_never_environment(job: Object) -> None:
    pod = job["spec"]["template"]["spec"]
    mounts = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}

    assert {"/etc/finetune/storage/read", "/etc/finetune/storage/write"} <= mounts
    references = [variable.get("valueFrom", {}) for variable in pod["containers"][0]["env"]]
    assert not any("secretKeyRef" in reference for reference in references)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_home_and_caches_are_in_writable_volumes_and_set_by_the_pod_alone(job: Object) -> None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    image = DOCKERFILE.read_text()

    for name in ("HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert any(Path(variables[name]).is_relative_to(path) for path in writable), name
    assert [name for name in variables if f"{name}=" in image] == []


def test_the_gpus_selector_and_tolerations_are_the_attempts_alone() -> None:
    preflight, attempt = (JOBS[name]["spec"]["template"]["spec"] for name in ("preflight", "attempt"))

    assert attempt["nodeSelector"] == {"gpu": "h100"}
    assert {"key": "gpu", "operator": "Equal"} in attempt["tolerations"]
    assert "nodeSelector" not in preflight
    assert [toleration["key"] for toleration in preflight["tolerations"]] == ["node.kubernetes.io/unreachable"]


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_pod_leaves_a_node_that_does_not_answer_after_half_a_minute(job: Object) -> None:
    (lost,) = [
        t for t in job["spec"]["template"]["spec"]["tolerations"] if t["key"] == "node.kubernetes.io/unreachable"
    ]

    assert (lost["operator"], lost["effect"], lost["tolerationSeconds"]) == ("Exists", "NoExecute", 30)


def test_an_attempt_learns_its_number_its_halvings_its_gpu_type_its_uid_and_its_grace() -> None:
    pods = {"terminationGracePeriodSeconds": 300}
    patient = FineTuneProfileSpec.model_validate({**PROFILE.model_dump(by_alias=True), "pods": pods})

    pod = children.attempt_job(WORLD, SPEC, patient, Try(3, GPU, halvings=1))["spec"]["template"]["spec"]

    (container,) = pod["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert container["args"][:5] == ["train", "--attempt", "3", "--halvings", "1"]
    assert variables["FINETUNE_GPU_TYPE"]["value"] == "h100", "a trainer image of before refuses an unknown argument"
    assert "--halvings" not in JOBS["attempt"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert variables["POD_UID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"
    assert (pod["terminationGracePeriodSeconds"], variables["GRACE_SECONDS"]["value"]) == (300, "298")
    assert JOBS["attempt"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 120


@pytest.mark.parametrize(("grace", "delay"), [(1, 0), (2, 1), (4, 2), (30, 2), (None, 2)])
def test_a_stopped_attempt_gets_sigterm_when_it_has_surely_started_and_half_its_grace_is_left(
    grace: int | None, delay: int
) -> None:
    pods = {"terminationGracePeriodSeconds": grace} if grace else {}
    profile = FineTuneProfileSpec.model_validate({**PROFILE.model_dump(by_alias=True), "pods": pods})

    (container,) = children.attempt_job(WORLD, SPEC, profile, Try(1, GPU))["spec"]["template"]["spec"]["containers"]

    hook = container.get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})
    told = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert (hook, told["GRACE_SECONDS"]) == ({"sleep": {"seconds": delay}}, str((grace or 120) - delay))


def test_an_attempt_keeps_away_from_the_nodes_whose_gpu_failed() -> None:
    pod = children.attempt_job(WORLD, SPEC, PROFILE, Try(2, GPU, avoided=("n1", "n2")))["spec"]["template"]["spec"]

    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [(e["key"], e["operator"], e["values"]) for e in term["matchFields"]] == [
        ("metadata.name", "NotIn", ["n1"]),
        ("metadata.name", "NotIn", ["n2"]),
    ]
    assert "affinity" not in JOBS["attempt"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("memory", "limit"), [("512Mi", "4Gi"), ("8Gi", "8Gi"), ("9663676416", "9663676416")])
def test_raising_compute_memory_raises_the_preflights_limit(memory: str, limit: str) -> None:
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"memory": memory})})

    resources = children.preflight_job(WORLD, spec, PROFILE)["spec"]["template"]["spec"]["containers"][0]["resources"]

    assert resources == {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": limit}}


@pytest.mark.parametrize(("gpus", "gibibytes"), [(1, 1), (2, 2), (16, 16)])
def test_shared_memory_grows_with_the_gpus_of_an_attempt(gpus: int, gibibytes: int) -> None:
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"gpus_per_node": gpus})})

    attempt, preflight = children.attempt_job(WORLD, spec, PROFILE, Try(1, GPU)), JOBS["preflight"]

    assert (shared_memory(attempt), shared_memory(preflight)) == (gibibytes * 2**30, 2**30)


def test_the_profile_sets_the_size_limit_of_the_scratch_volume_and_preflight_is_told_it() -> None:
    pods = {"scratchSizeLimit": "1500Gi"}
    profile = FineTuneProfileSpec.model_validate({**PROFILE.model_dump(by_alias=True), "pods": pods})

    for used, limit in ((PROFILE, "200Gi"), (profile, "1500Gi")):
        for job in (children.preflight_job(WORLD, SPEC, used), children.attempt_job(WORLD, SPEC, used, Try(1, GPU))):
            (volume,) = [each for each in job["spec"]["template"]["spec"]["volumes"] if each["name"] == "scratch"]
            assert volume["emptyDir"] == {"sizeLimit": limit}
        assert bundles.bundle_of(WORLD, SPEC, used).scratch_size == limit


def shared_memory(job: Object) -> int:
    """The size of /dev/shm in bytes."""
    (volume,) = [each for each in job["spec"]["template"]["spec"]["volumes"] if each["name"] == "shm"]
    assert volume["emptyDir"]["medium"] == "Memory"
    return int(parse_quantity(volume["emptyDir"]["sizeLimit"]))


def test_the_bundle_is_immutable_and_reads_back_as_it_was() -> None:
    (config_map,) = bundles.missing(WORLD, SPEC, PROFILE)

    bundle = Bundle.model_validate(json.loads(config_map["data"]["bundle.json"]))
    assert config_map["immutable"]
    assert (bundle.spec, bundle.storages, bundle.gpu_types) == (SPEC, PROFILE.storages, PROFILE.gpu_types)
    assert bundle.job is not None
    assert bundle.job.uid == UID


def test_pods_get_the_cache_of_prepared_rows_and_the_keys_for_its_bucket() -> None:
    storages = [
        *PROFILE.storages[:1],
        {"buckets": ["cache"], "credentialsSecretName": "cache-keys"},
        PROFILE.storages[1],
    ]
    profile = FineTuneProfileSpec.model_validate(
        {
            **PROFILE.model_dump(by_alias=True, exclude_none=True),
            "storages": storages,
            "preparedCache": {"uri": "s3://cache/prepared"},
        }
    )

    bundle = json.loads(bundles.missing(WORLD, SPEC, profile)[0]["data"]["bundle.json"])
    pods = [children.preflight_job(WORLD, SPEC, profile), children.attempt_job(WORLD, SPEC, profile, Try(1, GPU))]

    assert bundle["preparedCache"] == {"uri": "s3://cache/prepared"}
    assert all('"secretName": "cache-keys"' in json.dumps(pod) for pod in pods)
    assert "cache-keys" not in json.dumps(JOBS["preflight"])


def test_the_preflight_stands_in_the_profiles_queue_and_the_attempt_does_not() -> None:
    queued = FineTuneProfileSpec.model_validate({**PROFILE.model_dump(), "pods": {"preflight": {"queueName": "cpu"}}})

    jobs = children.preflight_job(WORLD, SPEC, queued), children.attempt_job(WORLD, SPEC, queued, Try(1, GPU))

    assert [job["metadata"]["labels"].get(LABEL_QUEUE) for job in jobs] == ["cpu", None]
    assert LABEL_QUEUE not in JOBS["preflight"]["metadata"]["labels"]


def test_the_priority_class_stands_beside_the_queue_and_not_without_it() -> None:
    def priorities(world: World, profile: FineTuneProfileSpec) -> list[str | None]:
        jobs = children.preflight_job(world, SPEC, profile), children.attempt_job(world, SPEC, profile, Try(1, GPU))
        return [job["metadata"]["labels"].get(LABEL_PRIORITY_CLASS) for job in jobs]

    queued = FineTuneProfileSpec.model_validate({**PROFILE.model_dump(), "pods": {"preflight": {"queueName": "cpu"}}})
    urgent = fresh(priority_class="urgent")

    assert priorities(urgent, PROFILE) == [None, None]
    assert priorities(replace(urgent, queue="gpus"), PROFILE) == [None, "urgent"]
    assert priorities(replace(urgent, queue="gpus"), queued) == ["urgent", "urgent"]
    assert priorities(fresh(queue="gpus"), queued) == [None, None]


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_kubectl_logs_shows_the_trainers_log_beside_any_sidecar(job: Object) -> None:
    annotations = job["spec"]["template"]["metadata"]["annotations"]

    assert annotations == {"kubectl.kubernetes.io/default-container": "trainer"}


@pytest.mark.parametrize(("gpus", "cpu", "memory"), [(1, "500m", "1.5Gi"), (4, "2", "6442450944")])
def test_an_attempt_requests_cpu_and_memory_for_each_of_its_gpus(gpus: int, cpu: str, memory: str) -> None:
    compute = SPEC.compute.model_copy(update={"gpus_per_node": gpus, "cpu": "500m", "memory": "1.5Gi"})
    job = children.attempt_job(WORLD, SPEC.model_copy(update={"compute": compute}), PROFILE, Try(1, GPU))
    limits = {"memory": memory, PROFILE.gpu_types[0].resource_name: str(gpus)}
    resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": cpu, **limits}, "limits": limits}


@pytest.mark.parametrize(("name", "labelled"), [("h100-80GB.x_1", True), ("NVIDIA A100 80GB", False), ("h100-", False)])
def test_a_gpu_type_is_a_label_unless_its_name_is_from_before_the_rule_for_names(name: str, labelled: bool) -> None:
    gpu = GPU.model_copy(update={"name": name})
    job = children.attempt_job(WORLD, SPEC, PROFILE, Try(1, gpu))
    found = [part["metadata"]["labels"].get(LABEL_GPU_TYPE) for part in (job, job["spec"]["template"])]
    assert found == ([name] * 2 if labelled else [None] * 2)
