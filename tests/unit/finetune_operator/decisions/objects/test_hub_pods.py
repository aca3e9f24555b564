"""Jobs whose model or rows are on a model hub: which may start, and what their pods get."""

from typing import Any

import pytest

from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions.objects import children
from finetune_operator.decisions.objects.children import Try
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import Object
from tests.unit.finetune_operator.plans import kinds, message, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, fresh, validated

MIRROR = "https://mirror.example/hub"
MODEL = {"uri": "hf://meta-llama/Llama-3.2-1B"}
OWN_TOKEN = MODEL | {"tokenSecretRef": {"name": "mine", "key": "hub"}}


def job(model: dict[str, Any] | None = None, train: str = "s3://data/rows.jsonl") -> FineTuneJobSpec:
    body = SPEC.model_dump(by_alias=True, exclude_none=True)
    return FineTuneJobSpec.model_validate(
        body | {"dataset": {"train": [{"uri": train}]}} | ({"model": model} if model else {})
    )


def profile(**hub: Any) -> FineTuneProfileSpec:
    body = PROFILE.model_dump(by_alias=True, exclude_none=True)
    return FineTuneProfileSpec.model_validate(body | {"hub": {"endpoint": MIRROR} | hub})


def pods(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[Object]:
    world = fresh(spec=spec, profile=profile)
    jobs = (
        children.preflight_job(world, spec, profile),
        children.attempt_job(world, spec, profile, Try(1, profile.gpu_types[0])),
    )
    return [job["spec"]["template"]["spec"] for job in jobs]


def variables(pod: Object) -> dict[str, str]:
    return {item["name"]: item["value"] for item in pod["containers"][0]["env"] if item["name"].startswith("HF_")}


def token_of(pod: Object) -> Object | None:
    """The Secret behind /etc/finetune/hub."""
    paths = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    return next((v["secret"] for v in pod["volumes"] if v["name"] == paths.get("/etc/finetune/hub")), None)


@pytest.mark.parametrize("spec", [job(MODEL), job(train="hf://datasets/acme/rows/data/*.jsonl")], ids=["model", "rows"])
def test_pods_of_a_job_with_a_hub_are_online_and_ask_the_endpoint_of_the_profile(spec: FineTuneJobSpec) -> None:
    for pod in pods(spec, profile()):
        assert variables(pod) == {"HF_ENDPOINT": MIRROR, "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_pods_of_another_job_are_offline_and_get_no_token() -> None:
    for pod in pods(SPEC, profile(tokenSecretName="shared")):
        assert variables(pod) == {"HF_HUB_OFFLINE": "1"}
        assert token_of(pod) is None


def test_the_pod_that_deletes_checkpoints_is_offline_and_gets_no_token() -> None:
    spec, with_token = job(OWN_TOKEN), profile(tokenSecretName="shared")
    cleanup = children.cleanup_job(fresh(spec=spec, profile=with_token), spec, with_token)
    pod = cleanup["spec"]["template"]["spec"]
    assert (variables(pod), token_of(pod)) == ({"HF_HUB_OFFLINE": "1"}, None)
    assert "hub" not in {volume["name"] for volume in pod["volumes"]}


def test_pods_are_offline_where_the_profile_has_no_hub() -> None:
    for pod in pods(job(MODEL), PROFILE):
        assert variables(pod) == {"HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("model", "hub", "secret", "key"),
    [
        (OWN_TOKEN, {}, "mine", "hub"),
        (OWN_TOKEN, {"tokenSecretName": "shared"}, "mine", "hub"),
        (MODEL, {"tokenSecretName": "shared"}, "shared", "HF_TOKEN"),
    ],
)
def test_the_token_is_one_file_of_the_jobs_secret_or_else_of_the_profiles(
    model: dict[str, Any], hub: dict[str, Any], secret: str, key: str
) -> None:
    for pod in pods(job(model), profile(**hub)):
        assert token_of(pod) == {"secretName": secret, "items": [{"key": key, "path": "token"}], "optional": True}


def test_a_job_without_a_token_starts() -> None:
    assert all(token_of(pod) is None for pod in pods(job(MODEL), profile()))
    assert "Job" in kinds(reconcile(fresh(spec=job(MODEL), profile=profile()), NOW))


@pytest.mark.parametrize(
    ("spec", "profile", "said"),
    [
        (
            job(MODEL),
            PROFILE,
            "spec.model.uri: hf://meta-llama/Llama-3.2-1B is on a model hub, but FineTuneProfile default has no hub. "
            "Copy the files to S3 and use their s3:// URI, or set spec.hub of the profile.",
        ),
        (
            job(MODEL),
            profile(allowed=["Qwen/*", "meta-llama/Llama-2*"]),
            "spec.model.uri: hf://meta-llama/Llama-3.2-1B is not among the repositories that FineTuneProfile default "
            "allows. It allows Qwen/*, meta-llama/Llama-2*. Use one of these repositories, or add "
            "meta-llama/Llama-3.2-1B to spec.hub.allowed of the profile.",
        ),
        (
            job(train="hf://datasets/acme/rows/a.csv"),
            profile(allowed=["acme/*"]),
            "spec.dataset.train[0].uri: hf://datasets/acme/rows is not among",
        ),
    ],
    ids=["no-hub", "other-model", "other-data"],
)
def test_a_job_whose_hub_or_repository_is_not_allowed_fails_before_its_first_pod(
    spec: FineTuneJobSpec, profile: FineTuneProfileSpec, said: str
) -> None:
    plan = reconcile(fresh(spec=spec, profile=profile), NOW)

    assert (state(plan), plan.create) == ("Failed", [])
    assert message(plan).startswith(said)


def test_a_job_that_has_begun_waits_while_the_profile_has_no_hub() -> None:
    plan = reconcile(validated(spec=job(MODEL)), NOW)

    assert state(plan) != "Failed"
    assert plan.create == []
