"""The store: newest versions win, deletions are final, and only relevant changes are reported."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import names
from finetune_operator.observed.world import Key
from finetune_operator.store.store import ACCOUNT, BINDING, JOB, KINDS, POD, PROFILE, RUN, Store
from tests.unit.finetune_operator.store.objects import job, named, pod, profile, run, validated

KEY = ("team", "tickets")
MAKERS: dict[str, Callable[..., Any]] = {
    JOB: job,
    RUN: run,
    POD: pod,
    PROFILE: profile,
    ACCOUNT: named,
    BINDING: named,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_version_never_replaces_a_newer_one(kind: str, store: Store) -> None:
    for version in (5, 9, 7):
        store.put(kind, MAKERS[kind]("u", version))
    assert store.uids(kind) == {"u": 9}


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_object_does_not_come_back_with_a_late_answer(kind: str, store: Store) -> None:
    store.put(kind, MAKERS[kind]("u", 5))
    store.remove(kind, "u")
    store.put(kind, MAKERS[kind]("u", 6), own=True)
    assert (store.uids(kind), store.has(kind, "u")) == ({}, True)


def test_the_job_of_a_name_is_its_newest_object(store: Store) -> None:
    store.put(JOB, job("new", 8))
    store.put(JOB, job("old", 5))
    found = store.job(KEY)
    assert found is not None
    assert found.uid == "new"


@pytest.mark.parametrize(
    ("status", "is_told"),
    [
        ({"training": {"step": 7}}, False),
        ({"preflight": {"rows": 7}}, False),
        ({"conditions": [{"type": "Trained", "status": "True"}]}, True),
        ({"artifacts": {"report": "s3://r/run/report.html"}}, True),
        ({"state": "Complete"}, False),
    ],
    ids=["progress", "what preflight found", "a condition", "the results", "the end"],
)
def test_only_a_change_that_a_decision_reads_is_reported(
    status: dict[str, Any], is_told: bool, store: Store, told: list[Key]
) -> None:
    store.put(JOB, job("j", 1))
    told.clear()
    store.put(JOB, job("j", 2, status=status))
    assert told == [KEY] * is_told
    assert store.uids(JOB) == {"j": 2}


def test_a_child_reports_its_job_and_a_pod_the_job_of_its_job(store: Store, told: list[Key]) -> None:
    store.put(JOB, job())
    store.put(RUN, run())
    told.clear()
    store.put(POD, pod(phase="Pending"))
    store.put(POD, pod(version=2, phase="Running"))
    store.put(POD, pod(version=3, phase="Running"))
    assert told == [KEY] * 2
    ((kept, pods),) = store.runs("j")
    assert (kept.step, kept.attempt, [pod.phase for pod in pods]) == ("train", 1, ["Running"])


def test_children_of_a_job_that_has_ended_report_nothing(store: Store, told: list[Key]) -> None:
    store.put(JOB, job(status={"state": "Failed"}))
    store.put(RUN, run())
    store.put(POD, pod())
    assert told == []
    assert store.unsettled() == []


def test_a_copy_of_a_child_without_its_owner_is_not_kept(store: Store) -> None:
    store.put(RUN, run(ownerReferences=[]))
    assert store.uids(RUN) == {}


def test_a_run_that_is_being_deleted_does_not_count(store: Store) -> None:
    store.put(RUN, run())
    store.put(RUN, run(version=2, deletionTimestamp="2026-01-02T03:04:06Z"))
    assert store.runs("j") == []


def test_an_own_write_counts_at_once_is_not_reported_and_is_expected_from_a_watch(
    store: Store, told: list[Key]
) -> None:
    store.put(JOB, job())
    told.clear()
    store.put(RUN, run(version=4), own=True)
    assert len(store.runs("j")) == 1
    assert told == []
    assert store.longest_unseen() > 0
    store.put(RUN, run(version=4))
    assert store.longest_unseen() == 0
    assert told == []


def test_no_watch_is_expected_to_show_a_pod_that_is_read_live_and_is_nobodys(store: Store) -> None:
    foreign = pod()
    foreign["metadata"] |= {"ownerReferences": []}
    foreign["metadata"]["labels"].pop(names.LABEL_CONTROLLER, None)
    store.put(POD, foreign, own=True)
    assert store.longest_unseen() == 0


def test_a_run_that_the_operator_deleted_is_gone_before_a_watch_shows_it(store: Store) -> None:
    store.put(RUN, run(), own=True)
    store.forget_run("j", "tickets-j-a1")
    store.put(RUN, run(version=2))
    assert store.runs("j") == []
    assert store.longest_unseen() == 0


def test_a_profile_reports_the_unfinished_jobs_that_name_it(store: Store, told: list[Key]) -> None:
    store.put(JOB, job("a", name="a", profile="big"))
    store.put(JOB, job("b", name="b", profile="small"))
    store.put(JOB, job("c", name="c", profile="big", status={"state": "Complete"}))
    told.clear()
    store.put(PROFILE, profile(name="big"))
    store.put(PROFILE, profile(name="big", version=2))
    store.put(PROFILE, profile(name="big", version=3, trainer={"image": "t:2"}))
    assert told == [("team", "a")] * 2


@pytest.mark.parametrize("kind", [ACCOUNT, BINDING])
def test_a_lost_account_or_binding_reports_the_jobs_of_its_namespace(kind: str, store: Store, told: list[Key]) -> None:
    store.put(JOB, job())
    told.clear()
    store.put(kind, named())
    assert (store.has_account("team"), store.has_binding("team")) == (kind == ACCOUNT, kind == BINDING)
    assert told == []
    store.remove(kind, "n")
    assert (store.has_account("team"), store.has_binding("team")) == (False, False)
    assert told == [KEY]


def test_an_account_that_is_being_deleted_counts_as_lost(store: Store) -> None:
    store.put(ACCOUNT, named())
    store.put(ACCOUNT, named(version=2, deletionTimestamp="2026-01-02T03:04:06Z"))
    assert not store.has_account("team")


def test_only_jobs_that_may_still_write_are_writers(store: Store) -> None:
    ended = {**validated(), "state": "Complete"}
    for uid, status in {"new": {}, "validated": validated(), "ended": ended, "begun": validated()}.items():
        store.put(JOB, job(uid, name=uid, status=status))
    store.put(RUN, run(owner="begun"))
    store.put(RUN, run("r2", owner="validated", step="preflight"))
    assert {kept.uid: begun for kept, begun in store.writers("s3://r/run")} == {"validated": False, "begun": True}
    store.put(JOB, job("begun", 2, name="begun", status=ended))
    store.remove(JOB, "validated")
    assert store.writers("s3://r/run") == []


BROKEN = {
    JOB: {**job("b"), "status": {"conditions": [{}]}},
    RUN: run("b", labels={names.LABEL_STEP: "train", names.LABEL_ATTEMPT: "first"}),
    POD: {**pod("b"), "status": {"conditions": [{}]}},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_object_that_cannot_be_read_is_ignored_and_stops_nothing(
    kind: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(kind, BROKEN[kind])
    assert (store.uids(kind), store.has(kind, "b")) == ({}, True), "nobody waits for it"
    assert "is ignored, because it cannot be read" in caplog.text
    store.put(kind, MAKERS[kind]("b", 2))
    assert store.uids(kind) == {"b": 2}, "it was mended"


def test_an_object_that_is_kept_no_longer_is_forgotten_and_reported(store: Store, told: list[Key]) -> None:
    store.put(JOB, job())
    store.put(RUN, run(version=3))
    told.clear()
    store.put(RUN, run(version=2, ownerReferences=[]))
    assert len(store.runs("j")) == 1, "old news"
    store.put(RUN, run(version=4, ownerReferences=[]))
    assert store.runs("j") == []
    assert told == [KEY]
    store.put(RUN, run(version=3))
    assert store.runs("j") == [], "old news"


EVENTS = st.lists(
    st.tuples(st.sampled_from(["put", "own", "remove"]), st.sampled_from("abc"), st.integers(1, 9)), max_size=30
)


@given(EVENTS)
def test_in_whatever_order_events_arrive_the_newest_version_of_what_is_not_deleted_is_kept(
    events: list[tuple[str, str, int]],
) -> None:
    store, newest, gone = Store(lambda key: None), dict[str, int](), set[str]()
    store.put(JOB, job())
    for what, uid, version in events:
        if what == "remove":
            store.remove(RUN, uid)
            gone.add(uid)
            newest.pop(uid, None)
        else:
            store.put(RUN, run(uid, version), own=what == "own")
            if uid not in gone:
                newest[uid] = max(version, newest.get(uid, 0))
    assert store.uids(RUN) == newest
    assert {kept.uid for kept, _ in store.runs("j")} == set(newest)
