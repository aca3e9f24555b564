"""A job that has ended costs no request until its checkpoints are due, and only a few cleanups run together."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from finetune_api import names
from finetune_api.bundle import Bundle, JobIdentity
from finetune_operator.cluster.accounts import Accounts
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.ended import MOST_CLEANUPS, MOST_IN_NAMESPACE
from finetune_operator.cluster.observe import observe
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import Key, World
from finetune_operator.store.store import JOB, POD, PROFILE, RUN, Store
from finetune_operator.store.turns import TURN_SECONDS
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import PROFILE as PROFILE_SPEC
from tests.unit.finetune_operator.worlds import SPEC

WEEK = timedelta(days=7)
NOW = datetime.now(UTC)
OVER = {"conditions": [{"type": "Complete", "status": "True"}]}


class Live:
    """An API server that has one job and no claim, and counts how often it is asked for the job."""

    def __init__(self, present: Object | None, bundle: Object | None = None) -> None:
        self.present, self.bundle, self.asked = present, bundle, 0
        self.claims_asked: list[str] = []

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        if kind == "ConfigMap":
            return self.bundle
        if kind == "PersistentVolumeClaim":
            self.claims_asked.append(name)
            return None
        self.asked += 1
        return self.present


def failed(ended: datetime = NOW - WEEK - timedelta(hours=1), **parts: Any) -> Object:
    job = objects.job(**parts)
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
    moment = ended.isoformat()
    end = {"type": "Failed", "status": "True", "reason": "LossDiverged", "lastTransitionTime": moment}
    job["status"] = {"state": "Failed", "conditions": [end], "counts": {"attempts": 1}, "observedGeneration": 1}
    return job


def cleanup(uid: str = "c", owner: str = "j", version: int = 1, **parts: Any) -> Object:
    run = objects.run(uid, version, owner, names.CLEANUP)
    del run["metadata"]["labels"][names.LABEL_ATTEMPT]
    run["metadata"]["name"] = names.cleanup_name("tickets", owner)
    return run | parts


def store_with(*jobs: Object, profile: bool = True, told: list[Key] | None = None) -> Store:
    store = Store(lambda key: told.append(key) if told is not None else None)
    for job in jobs:
        store.put(JOB, job)
    if profile:
        spec = PROFILE_SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
        store.put(PROFILE, objects.profile(**spec))
    return store


def observed(store: Store, live: Live, key: Key = ("team", "tickets")) -> World | None:
    api = cast(Api, live)
    return observe(api, store, Accounts(api), key)


@pytest.mark.parametrize("nodes", [None, 1, 2])
def test_whether_a_job_had_several_nodes_is_known_without_its_jobs(nodes: int | None) -> None:
    job = failed(NOW)
    job["spec"] |= {"compute": {"nodes": nodes}, "runPolicy": {"ttlSecondsAfterFinished": 60}}
    world = observed(store_with(job), Live(job))

    assert world is not None
    assert (world.children, world.had_several_nodes) == ((), nodes == 2)


def test_the_end_of_a_cleanup_beside_a_sidecar_starts_a_decision_and_is_read_live() -> None:
    job, told = failed(), list[Key]()
    store, live = store_with(job, told=told), Live(job)
    store.put(RUN, cleanup())
    told.clear()
    ended = {"terminated": {"exitCode": 0, "finishedAt": (NOW - timedelta(minutes=1)).isoformat()}}
    pod = objects.pod(owner="c")
    pod["status"]["containerStatuses"] = [
        {"name": names.CONTAINER, "state": ended},
        {"name": "proxy", "state": {"running": {}}},
    ]

    store.put(POD, pod)
    world = observed(store, live)

    assert told == [("team", "tickets")]
    assert world is not None
    assert (world.spec is not None, live.asked) == (True, 1)


def test_the_pods_of_a_job_that_has_ended_start_no_decision() -> None:
    told = list[Key]()
    store = store_with(failed(), told=told)
    store.put(RUN, objects.run("r"))
    told.clear()

    store.put(POD, objects.pod(owner="r"))

    assert told == []


def test_a_job_whose_checkpoints_are_not_due_costs_no_request() -> None:
    job = failed(NOW - timedelta(days=6))
    live = Live(job)

    world = observed(store_with(job), live)

    assert world is not None
    assert (world.keep, world.spec, live.asked) == (WEEK, None, 0)


def test_spec_status_and_profile_are_read_when_the_checkpoints_are_due() -> None:
    job = failed()
    live = Live(failed(version=5))

    world = observed(store_with(job), live)

    assert world is not None
    assert (world.spec, world.profile, world.raw_status) == (SPEC, PROFILE_SPEC, job["status"])
    assert (world.resource_version, world.cleanup_has_turn, live.asked) == ("5", True, 1)


IDENTITY = JobIdentity(namespace="team", name="tickets", uid="j")


def test_a_cleanup_is_created_with_the_bundle_of_its_job() -> None:
    live = Live(failed(), objects.bundle(Bundle(job=IDENTITY, spec=SPEC, storages=PROFILE_SPEC.storages[:1])))

    world = observed(store_with(failed()), live)

    assert world is not None
    assert world.bundle is not None
    assert world.bundle.storages == PROFILE_SPEC.storages[:1]


@pytest.mark.parametrize("live", [None, failed(uid="another")], ids=["deleted", "made again"])
def test_a_job_that_was_deleted_meanwhile_is_left_alone(live: Object | None) -> None:
    assert observed(store_with(failed()), Live(live)) is None


def test_a_job_without_a_profile_costs_no_request() -> None:
    live = Live(failed())
    world = observed(store_with(failed(), profile=False), live)
    assert world is not None
    assert (world.profile, live.asked) == (None, 0)


def test_a_running_cleanup_costs_no_request_and_its_end_costs_one() -> None:
    store, live = store_with(failed()), Live(failed())
    store.put(RUN, cleanup())
    store.put(POD, objects.pod(owner="c"))
    running = observed(store, live)
    asked = live.asked
    store.put(RUN, cleanup(version=2, status=OVER))
    over = observed(store, live)

    assert running is not None
    assert running.cleanup is not None
    assert (running.cleanup.pod is not None, running.trainers, asked) == (True, (), 0)
    assert over is not None
    assert (over.cleanup and over.cleanup.succeeded, over.raw_status["state"], live.asked) == (True, "Failed", 1)


def in_a_claim() -> Object:
    """A failed job whose results were to be in claim results, which does not exist."""
    job = failed()
    job["spec"]["output"]["uri"] = "pvc://results/run"
    return job


def test_the_claim_of_the_output_is_read_before_the_cleanup_is_created() -> None:
    live = Live(in_a_claim())
    world = observed(store_with(in_a_claim()), live)
    assert world is not None
    assert (world.claims, live.claims_asked) == ({"results": None}, ["results"])


@pytest.mark.parametrize(
    ("said", "read"),
    [('0/2 nodes are available: persistentvolumeclaim "results" not found.', 1), ("0/2 nodes: 2 Insufficient cpu.", 0)],
)
def test_the_claim_is_read_again_if_the_scheduler_says_that_the_pod_of_the_cleanup_lacks_one(
    said: str, read: int
) -> None:
    store, live = store_with(in_a_claim()), Live(in_a_claim())
    store.put(RUN, cleanup())
    pod = objects.pod(owner="c", phase="Pending")
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "X", "message": said}]
    store.put(POD, pod)

    world = observed(store, live)

    assert world is not None
    assert (len(live.claims_asked), live.asked) == (read, read)
    assert world.claims == ({"results": None} if read else {})


def test_the_pods_of_the_other_jobs_of_an_ended_job_are_known_also_without_their_job() -> None:
    store = store_with(failed(NOW))
    store.put(RUN, objects.run())
    store.put(POD, objects.pod("p1"))
    store.put(POD, objects.pod("p2", owner="gone"))

    world = observed(store, Live(None))

    assert world is not None
    assert len(world.trainers) == 2


def test_a_change_of_a_cleanup_is_reported_until_its_end_is_on_record() -> None:
    told: list[Key] = []
    store = store_with(failed(), told=told)
    told.clear()
    store.put(RUN, objects.run())
    store.put(POD, objects.pod())
    assert told == []
    store.put(RUN, cleanup())
    assert told == [("team", "tickets")]

    known = failed(version=2)
    deleted = {"type": "CheckpointsDeleted", "status": "True", "reason": "Deleted"}
    known["status"]["conditions"].append(deleted)
    store.put(JOB, known)
    told.clear()
    store.put(RUN, cleanup(version=2, status=OVER))
    assert (told, store.unsettled(), observed(store, Live(None))) == ([], [], None)


def many(namespaces: int, in_each: int) -> Store:
    """Failed jobs, each with a cleanup that runs, and one more job in namespace `team`, which has none."""
    store = store_with(failed())
    for space in range(namespaces):
        for number in range(in_each):
            uid = f"{space}-{number}"
            job, run = failed(uid=uid, name=f"job-{number}"), cleanup(f"c{uid}", uid)
            job["metadata"]["namespace"] = run["metadata"]["namespace"] = f"team{space or ''}"
            store.put(JOB, job)
            store.put(RUN, run)
    return store


def has_turn(store: Store) -> bool:
    live = Live(failed())
    world = observed(store, live)
    assert world is not None
    assert live.asked == world.cleanup_has_turn, "without a turn nothing is read"
    return world.cleanup_has_turn


def test_a_few_cleanups_run_at_the_same_time() -> None:
    assert has_turn(many(namespaces=MOST_CLEANUPS - 1, in_each=1))
    assert not has_turn(many(namespaces=MOST_CLEANUPS, in_each=1))


def test_one_tenant_has_fewer_of_them() -> None:
    assert has_turn(many(namespaces=1, in_each=MOST_IN_NAMESPACE - 1))
    assert not has_turn(many(namespaces=1, in_each=MOST_IN_NAMESPACE))


@pytest.mark.parametrize(
    "end",
    [
        lambda store, uid: store.put(RUN, cleanup(f"c{uid}", uid, 2, status=OVER)),
        lambda store, uid: store.put(RUN, cleanup(f"c{uid}", uid, 2, spec={"suspend": True})),
        lambda store, uid: store.remove(RUN, f"c{uid}"),
        lambda store, uid: store.remove(JOB, uid),
    ],
    ids=["ended", "suspended by its queue", "deleted", "its FineTuneJob deleted"],
)
def test_a_cleanup_that_holds_no_pod_gives_its_turn_to_another(end: Any) -> None:
    store = many(namespaces=1, in_each=MOST_IN_NAMESPACE)
    assert not has_turn(store)
    end(store, "0-0")
    assert has_turn(store)


def test_workers_that_look_together_do_not_create_more_and_an_unused_turn_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = [failed(uid=f"j{number}", name=f"job-{number}") for number in range(3)]
    store = store_with(*jobs)

    def turn(number: int) -> bool:
        world = observed(store, Live(jobs[number]), ("team", f"job-{number}"))
        assert world is not None
        return world.cleanup_has_turn

    assert [turn(number) for number in range(3)] == [True, True, False]
    assert turn(0), "a job that looks again keeps its turn"

    store.put(RUN, cleanup("c0", "j0"), own=True)
    assert not turn(2)
    store.put(RUN, cleanup("c0", "j0", 2, status=OVER))
    assert turn(2)
    store.put(JOB, failed(uid="j3", name="job-3"))
    jobs.append(failed(uid="j3", name="job-3"))
    assert not turn(3)

    later = time.monotonic() + TURN_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert turn(3)


def test_a_copy_of_a_cleanup_under_another_name_does_not_count() -> None:
    store = store_with(failed())
    copy = cleanup(status=OVER)
    copy["metadata"]["name"] = "copy"
    store.put(RUN, copy)

    world = observed(store, Live(failed()))

    assert world is not None
    assert (world.cleanup, world.cleanup_has_turn) == (None, True)


def resuming(version: int = 1, uid: str = "n", name: str = "again", **status: Any) -> Object:
    """A job of the same namespace that starts from the checkpoints of the failed one."""
    job = objects.job(uid, version, name, status=status)
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True) | {"resumeFrom": {"name": "tickets"}}
    return job


def at(attempt: int, begun: int | None, stored: int | None = None) -> Object:
    """The progress of an attempt that began at a checkpoint and has stored another one."""
    told = {"attempt": attempt, "resumedFromStep": begun, "checkpointStep": stored}
    return {name: value for name, value in told.items() if value is not None}


def failing(ended: datetime, reason: str = "GPUOutOfMemory", **more: Any) -> Object:
    """The status of a job that has failed. `more`: a further condition by its type."""
    end = {"type": "Failed", "status": "True", "reason": reason, "lastTransitionTime": ended.isoformat()}
    others = [{"type": type, "status": status} for type, status in more.items()]
    return {"state": "Failed", "conditions": [end, *others], "counts": {"attempts": 1}}


NEEDING = {
    "just created": {},
    "suspended": {"state": "Suspended"},
    "its preflight runs": {"state": "Validating"},
    "its attempt has not begun": {"state": "Queued", "counts": {"attempts": 1}},
    "it has only the step of the earlier job": {"state": "Running", "training": at(1, 40, 40)},
    "its first attempt was lost before a checkpoint": {
        "state": "Running",
        "attempts": [{"number": 1, "name": "a1", "resumedFromStep": 40, "checkpointStep": 40}],
        "training": at(2, 40),
    },
    "it has failed before its first checkpoint": {**failing(NOW), "training": at(1, 40, 40)},
    "it has failed before its first step": failing(NOW),
}
INDEPENDENT = {
    "it has a later checkpoint": {"state": "Running", "training": at(1, 40, 41)},
    "its first attempt had one": {
        "state": "Pending",
        "attempts": [{"number": 1, "name": "a1", "resumedFromStep": 40, "checkpointStep": 41}],
    },
    "its second attempt began with one": {
        "state": "Running",
        "attempts": [{"number": 1, "name": "a1", "resumedFromStep": 40}],
        "training": at(2, 60),
    },
    "it has failed after its own checkpoint": {**failing(NOW), "training": at(1, 40, 41)},
    "it has failed, and its own time is over": {**failing(NOW - WEEK), "training": at(1, 40, 40)},
    "it has failed, and its own checkpoints are deleted": failing(NOW, CheckpointsDeleted="True"),
    "its preflight has refused it": {"state": "Failed", "conditions": failing(NOW, "SpecInvalid")["conditions"]},
    "it is complete": {"state": "Complete", "conditions": []},
}


@pytest.mark.parametrize("status", NEEDING.values(), ids=NEEDING)
def test_the_cleanup_waits_while_a_job_that_resumes_has_no_checkpoint_of_its_own(status: Object) -> None:
    assert not has_turn(store_with(failed(), resuming(**status)))


@pytest.mark.parametrize("status", INDEPENDENT.values(), ids=INDEPENDENT)
def test_the_cleanup_begins_when_that_job_has_its_own_checkpoint_or_has_ended(status: Object) -> None:
    store = store_with(failed(), resuming())
    assert not has_turn(store)

    store.put(JOB, resuming(version=2, **status))

    assert has_turn(store)


@pytest.mark.parametrize(
    "end",
    [
        lambda store: store.remove(JOB, "n"),
        lambda store: store.put(JOB, _marked(resuming(version=2))),
    ],
    ids=["deleted", "being deleted"],
)
def test_a_job_that_is_deleted_needs_no_checkpoints(end: Any) -> None:
    store = store_with(failed(), resuming())
    end(store)
    assert has_turn(store)


def _marked(job: Object) -> Object:
    job["metadata"]["deletionTimestamp"] = objects.CREATED
    return job


def test_every_job_that_resumes_counts_and_only_those_of_the_namespace() -> None:
    foreign = resuming(uid="f")
    foreign["metadata"]["namespace"] = "another"
    ready = resuming(uid="r", name="ready", state="Running", training=at(1, 40, 41))

    assert has_turn(store_with(failed(), foreign, ready))
    assert not has_turn(store_with(failed(), foreign, ready, resuming()))


def test_a_job_that_resumes_waits_while_the_checkpoints_are_being_deleted() -> None:
    def is_cleaned(store: Store) -> bool:
        world = observed(store, Live(None), ("team", "again"))
        assert world is not None
        assert world.earlier_job is not None
        return world.earlier_job.is_cleaned

    store = store_with(failed())
    assert has_turn(store)
    store.put(JOB, resuming())
    assert is_cleaned(store), "the cleanup may be created at any moment"
    store.put(RUN, cleanup(), own=True)
    assert is_cleaned(store)
    store.put(RUN, cleanup(version=2, status=OVER))
    assert not is_cleaned(store), "then the preflight finds no checkpoint, and says so"
    assert not is_cleaned(store_with(failed(), resuming()))
