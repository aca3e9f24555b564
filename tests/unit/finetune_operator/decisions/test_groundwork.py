"""What a job needs before its preflight: its own objects, and what others provide."""

from datetime import timedelta

from finetune_api.spec.profile import PreparedCache
from finetune_operator.decisions import admission
from finetune_operator.decisions.reconcile import reconcile
from tests.unit.finetune_operator.plans import conditions, kinds, message, state
from tests.unit.finetune_operator.worlds import (
    NOW,
    PROFILE,
    SPEC,
    attempt,
    fresh,
    pod,
    preflight,
    validated,
    with_status,
)


def test_a_new_job_gets_its_groundwork_and_a_preflight_that_asks_for_no_gpu() -> None:
    plan = reconcile(fresh(), NOW)

    assert kinds(plan) == ["ServiceAccount", "RoleBinding", "ConfigMap", "Job"]
    assert "nvidia.com/gpu" not in str(plan.create[-1]), "of what is created only the Job can ask"
    assert (state(plan), conditions(plan)) == (
        "Pending",
        {"Ready": "False", "Reconciling": "True", "Stalled": "False"},
    )


def test_what_is_there_already_is_not_made_again() -> None:
    world = fresh(service_account_exists=True, role_binding_exists=True, preflight=preflight())

    assert reconcile(with_status(world, reconcile(world, NOW)), NOW).create == []


def test_a_service_account_of_the_tenants_own_is_neither_made_nor_bound() -> None:
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"service_account_name": "irsa"})})

    plan = reconcile(fresh(spec=spec, service_account_exists=True), NOW)

    assert kinds(plan) == ["ConfigMap", "Job"]
    assert plan.create[-1]["spec"]["template"]["spec"]["serviceAccountName"] == "irsa"


def test_a_missing_profile_is_waited_for_and_then_fails_the_job() -> None:
    world = fresh(profile=None)

    waiting = reconcile(world, NOW)
    assert (waiting.create, waiting.requeue_after, state(waiting)) == ([], admission.LOOK_AGAIN, "Pending")

    late = reconcile(world, world.created + admission.GRACE)
    assert (state(late), conditions(late)["Validated"], conditions(late)["Failed"]) == ("Failed", "False", "True")
    assert message(late) == (
        'spec.profileName: FineTuneProfile "default" does not exist. List the profiles with kubectl get '
        "finetuneprofiles, and set spec.profileName to one of them. Then create the job again."
    )


def test_a_profile_this_version_cannot_read_is_named_and_waited_for() -> None:
    world = fresh(profile=None, profile_error="spec.trainer.fleet: Extra inputs are not permitted.")

    plan = reconcile(world, NOW + timedelta(hours=1))  # an upgrade is under way, or has to be undone

    assert (state(plan), plan.create) == ("Pending", [])
    assert "spec.trainer.fleet: Extra inputs are not permitted." in message(plan)


def test_a_cache_in_a_bucket_of_no_storage_is_named_and_the_job_waits_for_the_profile() -> None:
    storages = [PROFILE.storages[0]]
    cache = PreparedCache(uri="s3://cache/prepared")
    spec = SPEC.model_copy(update={"output": SPEC.output.model_copy(update={"uri": "s3://models/run"})})
    world = fresh(spec=spec, profile=PROFILE.model_copy(update={"storages": storages, "prepared_cache": cache}))

    plan = reconcile(world, world.created + 2 * admission.GRACE)

    assert (state(plan), plan.create) == ("Pending", [])
    assert message(plan) == (
        "spec.preparedCache.uri of FineTuneProfile default: bucket cache is in no storage of FineTuneProfile default. "
        "The buckets of the profile are data, models. Correct spec.preparedCache.uri of the profile, or add its bucket "
        "to spec.storages. The job then starts."
    )


def test_a_missing_service_account_is_named() -> None:
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"service_account_name": "irsa"})})

    plan = reconcile(fresh(spec=spec), NOW + timedelta(minutes=1))

    assert 'ServiceAccount "irsa" does not exist in namespace team' in message(plan)


def test_a_service_account_that_may_not_report_gets_the_command_that_binds_it() -> None:
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"service_account_name": "irsa"})})
    world = fresh(spec=spec, service_account_exists=True, service_account_may_report=False)

    assert (state(reconcile(world, NOW)), reconcile(world, NOW).create) == ("Pending", [])
    assert "--clusterrole finetune-trainer --serviceaccount team:irsa" in message(reconcile(world, NOW))
    assert state(reconcile(world, world.created + admission.GRACE)) == "Failed"


def test_a_spec_this_version_cannot_read_waits_for_one_that_can() -> None:
    unreadable = {"spec": None, "spec_error": "spec.training.epochs: no."}
    plan = reconcile(fresh(**unreadable), NOW)
    running = reconcile(validated(attempts={1: attempt(pod())}, **unreadable), NOW)

    assert (state(plan), plan.create, state(running)) == ("Pending", [], "Running")
    unread = "This version of the operator cannot read the job: spec.training.epochs: no. "
    assert message(plan).startswith(unread)
    assert message(running).startswith(f"Training attempt 1 is running. {unread}The attempt goes on, but spec.suspend")


def test_an_output_among_the_rows_fails_at_once_but_no_job_that_has_begun() -> None:
    spec = SPEC.model_copy(update={"output": SPEC.output.model_copy(update={"uri": "s3://data//"})})

    plan = reconcile(fresh(spec=spec), NOW)

    assert (state(plan), plan.create) == ("Failed", [])
    assert message(plan).startswith(
        "spec.output.uri: spec.dataset.train[0] (s3://data/rows.jsonl) reads files from s3://data//. "
    )
    assert state(reconcile(validated(spec=spec), NOW)) != "Failed"


def test_a_profile_that_is_gone_for_a_while_does_not_end_a_job_that_has_begun() -> None:
    world = fresh(profile=None, preflight=preflight(pod()))

    assert state(reconcile(world, NOW + timedelta(hours=1))) == "Pending"
