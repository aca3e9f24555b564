"""A job that starts from the checkpoint of an earlier job: whether it may, and what its pods are told."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.decisions import admission
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.world import EarlierJob, World
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, fresh, pod, preflight, validated

SAID = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
FAILED = EarlierJob("old-uid", "s3://elsewhere/first//run/", "Failed")


def resuming(earlier: EarlierJob | None, name: str = "first", **changes: Any) -> World:
    spec = type(SPEC).model_validate(SAID | {"resumeFrom": {"name": name}})
    return fresh(spec=spec, earlier_job=earlier, **changes)


def late(world: World) -> Plan:
    return reconcile(world, world.created + admission.GRACE)


def bundle(plan: Plan) -> dict[str, Any]:
    config_map = next(body for body in plan.create if body["kind"] == "ConfigMap")
    found: dict[str, Any] = json.loads(config_map["data"]["bundle.json"])
    return found


def secrets(plan: Plan) -> list[str]:
    (job,) = (body for body in plan.create if body["kind"] == "Job")
    volumes = job["spec"]["template"]["spec"]["volumes"]
    return [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]


def test_the_pods_are_told_where_the_checkpoints_of_a_failed_job_are() -> None:
    plan = reconcile(resuming(FAILED), NOW)

    assert kinds(plan)[-2:] == ["ConfigMap", "Job"]
    assert bundle(plan)["resume"] == {"uid": "old-uid", "output": "s3://elsewhere/first//run/"}
    assert bundle(plan)["spec"]["resumeFrom"] == {"name": "first"}


def test_a_job_that_resumes_from_none_has_no_such_place() -> None:
    assert "resume" not in bundle(reconcile(fresh(), NOW))


def test_the_pods_get_the_keys_for_the_earlier_jobs_bucket() -> None:
    keys = {"buckets": ["elsewhere"], "credentialsSecretName": "old-keys"}
    said = PROFILE.model_dump(mode="json", by_alias=True, exclude_none=True)
    profile = type(PROFILE).model_validate(said | {"storages": [keys, *said["storages"]]})

    assert secrets(reconcile(fresh(profile=profile), NOW)) == ["read", "write"]
    assert secrets(reconcile(resuming(FAILED, profile=profile), NOW)) == ["read", "write", "old-keys"]
    begun = validated(profile=profile, spec=resuming(None).spec, earlier_job=FAILED)
    for gone in (None, replace(FAILED, output="s3://data/new", state="Pending")):
        assert "old-keys" in secrets(reconcile(replace(begun, earlier_job=gone), NOW)), "the bundle names its bucket"


@pytest.mark.parametrize(
    ("earlier", "said"),
    [
        (
            None,
            'spec.resumeFrom.name: FineTuneJob "first" does not exist in namespace team. Only a job of the same '
            "namespace can be named. List the jobs with kubectl get finetunejobs --namespace team, and name one that "
            "failed.",
        ),
        (replace(FAILED, state="Running"), 'spec.resumeFrom.name: FineTuneJob "first" has not ended. It is Running.'),
        (replace(FAILED, state="Suspended"), 'FineTuneJob "first" has not ended. It is Suspended.'),
        (replace(FAILED, state=""), 'FineTuneJob "first" has not ended. It is Pending.'),
    ],
)
def test_an_earlier_job_that_is_missing_or_has_not_ended_is_waited_for_and_then_fails_the_job(
    earlier: EarlierJob | None, said: str
) -> None:
    waiting, ended = reconcile(resuming(earlier), NOW), late(resuming(earlier))

    assert (waiting.create, waiting.requeue_after, state(waiting)) == ([], admission.LOOK_AGAIN, "Pending")
    assert said in message(waiting)
    assert (state(ended), reason(ended), ended.create) == ("Failed", "SpecInvalid", [])
    assert said in message(ended)


def test_a_completed_job_has_no_checkpoints_and_its_adapter_is_named() -> None:
    plan = reconcile(resuming(replace(FAILED, state="Complete")), NOW)

    assert (state(plan), reason(plan)) == ("Failed", "SpecInvalid")
    assert message(plan).startswith(
        'spec.resumeFrom.name: FineTuneJob "first" is complete, so its checkpoints are deleted. Remove '
        "spec.resumeFrom. To continue from its adapter, set spec.method.lora.from to the folder adapter in s3://elsewhere/first//run/."
    )


def test_checkpoints_that_are_being_deleted_are_waited_for_and_told() -> None:
    world = resuming(replace(FAILED, is_cleaned=True))

    plan = reconcile(world, world.created + 10 * admission.GRACE)

    assert (plan.create, state(plan), reason(plan)) == ([], "Pending", "WaitingForDependency")
    assert message(plan) == (
        'spec.resumeFrom.name: the checkpoints of FineTuneJob "first" are being deleted, because the time of its '
        "spec.runPolicy.keepCheckpointsSeconds is over. Create this job again without spec.resumeFrom."
    )


def test_a_job_cannot_resume_from_itself() -> None:
    plan = reconcile(resuming(replace(FAILED, state="Pending"), name="tickets"), NOW)

    assert (state(plan), reason(plan)) == ("Failed", "SpecInvalid")
    assert "a job cannot resume from itself" in message(plan)


def test_the_bucket_of_the_earlier_output_must_be_in_a_storage_of_the_profile() -> None:
    said = PROFILE.model_dump(mode="json", by_alias=True, exclude_none=True)
    profile = type(PROFILE).model_validate(said | {"storages": [{"buckets": ["data", "models", "results"]}]})

    plan = reconcile(resuming(FAILED, profile=profile), NOW)

    assert (state(plan), reason(plan)) == ("Failed", "SpecInvalid")
    assert (
        "spec.resumeFrom.name: the output of FineTuneJob first: bucket elsewhere is in no storage of FineTuneProfile "
        "default." in message(plan)
    )


@pytest.mark.parametrize("earlier", [None, replace(FAILED, state="Running")])
def test_a_job_that_has_begun_goes_on_when_the_earlier_job_is_deleted(earlier: EarlierJob | None) -> None:
    world = resuming(earlier, preflight=preflight(pod()), created=NOW - timedelta(hours=1))

    plan = reconcile(world, NOW)

    assert (state(plan), "first" in message(plan)) == ("Validating", False)
