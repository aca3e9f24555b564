"""What a profile and a job set for pods, and what they cannot change."""

from typing import Any

import pytest

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions.objects import bundles, children
from finetune_operator.decisions.objects.children import Try
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import Object
from tests.unit.finetune_operator.plans import message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, UID, fresh, preflight

WORLD = fresh(bundle=bundles.bundle_of(fresh(), SPEC, PROFILE), bundle_digest="0" * 64)


def profile(**pods: Any) -> FineTuneProfileSpec:
    return FineTuneProfileSpec.model_validate({**PROFILE.model_dump(by_alias=True, exclude_none=True), "pods": pods})


def job(**compute: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate({**SPEC.model_dump(by_alias=True, exclude_none=True), "compute": compute})


def made(settings: FineTuneProfileSpec, spec: FineTuneJobSpec = SPEC) -> dict[str, Object]:
    """The pod templates of the three kinds of pods."""
    jobs = {
        "preflight": children.preflight_job(WORLD, spec, settings),
        "train": children.attempt_job(WORLD, spec, settings, Try(1, settings.gpu_types[0])),
        "cleanup": children.cleanup_job(WORLD, spec, settings),
    }
    return {step: body["spec"]["template"] for step, body in jobs.items()}


@pytest.mark.parametrize("step", ["preflight", "train", "cleanup"])
def test_all_pods_have_the_settings_of_the_profile(step: str) -> None:
    template = made(
        profile(
            labels={"cost-center": "research"},
            annotations={"sidecar.istio.io/inject": "false"},
            imagePullSecrets=[{"name": "registry"}],
            priorityClassName="batch",
            runtimeClassName="nvidia",
            nodeSelector={"pool": "ml"},
            tolerations=[{"key": "ml", "operator": "Exists"}],
        )
    )[step]
    pod, metadata = template["spec"], template["metadata"]
    assert metadata["labels"]["cost-center"] == "research"
    assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("batch", "nvidia")
    assert pod["nodeSelector"]["pool"] == "ml"
    assert {"key": "ml", "operator": "Exists"} in pod["tolerations"]


def test_without_settings_a_pod_names_nothing_that_a_cluster_may_not_have() -> None:
    pod = made(PROFILE)["preflight"]["spec"]
    assert not {"imagePullSecrets", "priorityClassName", "runtimeClassName", "nodeSelector"} & set(pod)


@pytest.mark.parametrize("step", ["preflight", "train", "cleanup"])
def test_a_job_adds_to_its_pods_and_its_priority_counts(step: str) -> None:
    spec = job(labels={"team": "a"}, annotations={"note": "x"}, priorityClassName="urgent")
    allowed = {"labels": ["team"], "annotations": ["note"], "priorityClassNames": ["urgent"]}
    template = made(profile(labels={"own": "profile"}, priorityClassName="batch", allowed=allowed), spec)[step]
    assert template["metadata"]["labels"].items() >= {"team": "a", "own": "profile"}.items()
    assert template["metadata"]["annotations"]["note"] == "x"
    assert template["spec"]["priorityClassName"] == "urgent"


@pytest.mark.parametrize(
    "compute", [{"labels": {"team": "a"}}, {"annotations": {"note": "x"}}, {"priorityClassName": "urgent"}]
)
def test_a_cleanup_leaves_out_what_the_profile_no_longer_allows_to_the_job(compute: Any) -> None:
    settings = profile(labels={"own": "profile"}, priorityClassName="batch")
    assert made(settings, job(**compute))["cleanup"] == made(settings)["cleanup"]


@pytest.mark.parametrize("step", ["preflight", "train", "cleanup"])
def test_nobody_changes_the_labels_by_which_the_operator_finds_its_pods(step: str) -> None:
    # The API server refuses such keys. Here they come past it.
    before = made(PROFILE)[step]["metadata"]
    stolen = {**dict.fromkeys(before["labels"], "stolen"), names.LABEL_ATTEMPT: "7"}
    taken = dict.fromkeys(before["annotations"], "stolen")
    settings = profile(labels=stolen, annotations=taken)
    after = made(settings, job(labels=stolen, annotations=taken))[step]["metadata"]
    assert after["labels"].items() >= before["labels"].items()
    assert after["annotations"] == before["annotations"]
    assert after["labels"][names.LABEL_JOB_UID] == UID


def test_a_gpu_type_knows_its_own_nodes_better() -> None:
    templates = made(profile(nodeSelector={"gpu": "none", "zone": "a"}))
    assert templates["train"]["spec"]["nodeSelector"] == {"gpu": "h100", "zone": "a"}
    assert templates["preflight"]["spec"]["nodeSelector"] == {"gpu": "none", "zone": "a"}


@pytest.mark.parametrize("step", ["preflight", "train", "cleanup"])
def test_openshift_fills_in_the_ids_and_the_pod_still_does_not_run_as_root(step: str) -> None:
    security = made(profile(omitUserIds=True))[step]["spec"]["securityContext"]
    assert security == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_only_pods_without_a_gpu_have_the_tolerations_of_the_preflight() -> None:
    only = {"key": "cpu-only", "operator": "Exists"}
    templates = made(profile(preflight={"tolerations": [only]}))
    found = {step: only in template["spec"]["tolerations"] for step, template in templates.items()}
    assert found == {"preflight": True, "train": False, "cleanup": True}


@pytest.mark.parametrize(
    ("resources", "memory", "requests", "limits"),
    [
        ({}, "2Gi", {"cpu": "500m", "memory": "1Gi"}, {"memory": "4Gi"}),
        ({}, "16Gi", {"cpu": "500m", "memory": "1Gi"}, {"memory": "16Gi"}),
        ({"requests": {"cpu": "2"}}, "2Gi", {"cpu": "2", "memory": "1Gi"}, {"memory": "4Gi"}),
        ({"requests": {"memory": "6Gi"}}, "2Gi", {"cpu": "500m", "memory": "6Gi"}, {"memory": "6Gi"}),
        ({"limits": {"memory": "512Mi"}}, "256Mi", {"cpu": "500m", "memory": "512Mi"}, {"memory": "512Mi"}),
        ({"limits": {"memory": "6Gi"}}, "8Gi", {"cpu": "500m", "memory": "1Gi"}, {"memory": "8Gi"}),
        (
            {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "8Gi"}},
            "1Gi",
            {"cpu": "1", "memory": "2Gi"},
            {"cpu": "4", "memory": "8Gi"},
        ),
        ({"limits": {"cpu": "250m"}}, "2Gi", {"cpu": "250m", "memory": "1Gi"}, {"cpu": "250m", "memory": "4Gi"}),
    ],
)
def test_the_resources_of_the_preflight_are_the_profiles_and_requests_stay_within_limits(
    resources: Any, memory: str, requests: Any, limits: Any
) -> None:
    template = made(profile(preflight={"resources": resources}), job(memory=memory))["preflight"]
    assert template["spec"]["containers"][0]["resources"] == {"requests": requests, "limits": limits}


ALLOWED = {"labels": ["team", "acme.com/*"], "annotations": ["note"], "priorityClassNames": ["batch-?"]}


@pytest.mark.parametrize(
    ("compute", "field", "known"),
    [
        ({"labels": {"team": "a", "acme.com/x": "1"}, "annotations": {"note": ""}}, None, ""),
        ({"priorityClassName": "batch-1"}, None, ""),
        (
            {"labels": {"team": "a", "tea": "b"}},
            'spec.compute.labels: FineTuneProfile default does not allow "tea"',
            "team, acme.com/*",
        ),
        (
            {"labels": {"acme.org/x": "1"}},
            'labels: FineTuneProfile default does not allow "acme.org/x"',
            "team, acme.com/*",
        ),
        ({"labels": {"Team": "1"}}, 'does not allow "Team"', "team, acme.com/*"),
        ({"annotations": {"iam.amazonaws.com/role": "admin"}}, "spec.compute.annotations: ", "note"),
        ({"priorityClassName": "batch-10"}, "spec.compute.priorityClassName: ", "batch-?"),
    ],
)
def test_a_job_may_set_only_what_the_profile_allows(compute: Any, field: str | None, known: str) -> None:
    plan = reconcile(fresh(profile=profile(allowed=ALLOWED), spec=job(**compute)), NOW)
    if field is None:
        assert (state(plan), "Job" in [body["kind"] for body in plan.create]) == ("Pending", True)
        return
    assert (state(plan), reason(plan), plan.create) == ("Failed", "SpecInvalid", [])
    assert field in message(plan)
    assert f"It allows: {known}. Remove it, or ask the platform team to add it to spec.pods.allowed." in message(plan)


@pytest.mark.parametrize(
    "compute", [{"labels": {"a": "b"}}, {"annotations": {"a": "b"}}, {"priorityClassName": "system-node-critical"}]
)
def test_by_default_a_job_may_set_nothing(compute: Any) -> None:
    plan = reconcile(fresh(spec=job(**compute)), NOW)
    assert (state(plan), reason(plan)) == ("Failed", "SpecInvalid")
    assert "It allows: none." in message(plan)


def test_a_job_that_has_begun_waits_if_the_profile_no_longer_allows_it() -> None:
    plan = reconcile(fresh(spec=job(labels={"a": "b"}), preflight=preflight()), NOW)
    assert (state(plan), reason(plan), plan.create) == ("Pending", "WaitingForDependency", [])


@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_a_job_replaces_no_label_or_annotation_of_the_profile(field: str) -> None:
    settings = profile(**{field: {"acme.com/tier": "low"}}, allowed={field: ["*"]})

    plan = reconcile(fresh(profile=settings, spec=job(**{field: {"acme.com/tier": "high"}})), NOW)

    assert (state(plan), reason(plan), plan.create) == ("Failed", "SpecInvalid", [])
    found = f'spec.compute.{field}: FineTuneProfile default sets "acme.com/tier" for all pods, to another value.'
    assert message(plan).startswith(f"{found} Remove it, or")
    same = reconcile(fresh(profile=settings, spec=job(**{field: {"acme.com/tier": "low", "acme.com/more": "1"}})), NOW)
    assert state(same) == "Pending"


@pytest.mark.parametrize("step", ["preflight", "train", "cleanup"])
def test_the_values_of_the_profile_count_also_where_a_job_is_not_checked(step: str) -> None:
    both = {"labels": {"acme.com/tier": "low"}, "annotations": {"acme.com/note": "low"}}
    other = {"labels": {"acme.com/tier": "high"}, "annotations": {"acme.com/note": "high"}}
    metadata = made(profile(**both, allowed={"labels": ["*"], "annotations": ["*"]}), job(**other))[step]["metadata"]
    assert metadata["labels"]["acme.com/tier"] == metadata["annotations"]["acme.com/note"] == "low"
