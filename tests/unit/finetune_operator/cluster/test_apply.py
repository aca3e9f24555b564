"""A plan that cannot be taken back is carried out only if the job is still as it was observed."""

from datetime import UTC, datetime

import pytest

from finetune_operator.cluster.api import ApiError, NamespaceGoneError
from finetune_operator.cluster.apply import OutdatedError, apply
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.observed.facts.pods import Object
from finetune_operator.store.kept import unpacked
from finetune_operator.store.store import JOB, POD, Store
from tests.unit.finetune_operator.store.objects import job, pod, run, validated
from tests.unit.finetune_operator.worlds import fresh

FINAL = Plan(is_final=True)
NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Live:
    """An API server with one job, or with none."""

    def __init__(self, present: Object | None) -> None:
        self.present = present

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        return self.present


def carry_out(observed: Object, live: Object | None) -> None:
    """Observes a job, and carries out a final plan while the API server has another one."""
    store = Store(lambda key: None)
    store.put(JOB, observed)
    kept = store.job(("team", "tickets"))
    assert kept is not None
    seen = fresh(uid=kept.uid, raw_status=unpacked(kept.status))
    apply(Live(live), store, seen, FINAL, NOW)  # type: ignore[arg-type]


def test_a_final_plan_is_carried_out_while_the_job_is_as_it_was_observed() -> None:
    carry_out(job(version=2, status=validated()), job(version=3, status=validated()))


@pytest.mark.parametrize(
    "live",
    [
        None,
        job(version=3, status=validated(state="Failed")),
        job(uid="another", version=3, status=validated()),
        job(version=3, status={"conditions": [{"type": "Complete", "status": "True"}]}),
        job(version=3, status=validated(), generation=2),
    ],
    ids=["deleted", "changed", "made again", "ended", "another spec"],
)
def test_a_final_plan_is_given_up_if_the_job_has_changed(live: Object | None) -> None:
    with pytest.raises(OutdatedError):
        carry_out(job(version=2, status=validated()), live)


class Training(Live):
    """An API server with one job and some pods. Notes what it creates."""

    def __init__(self, present: Object, *pods: Object) -> None:
        super().__init__(present)
        self.pods, self.asked, self.created = pods, list[str](), list[str]()

    def listed(self, path: str, labels: str) -> list[Object]:
        self.asked.append(labels)
        return list(self.pods)

    def create(self, body: Object) -> Object:
        self.created.append(body["metadata"]["name"])
        return body


def begin_an_attempt(live: Training, *shown: Object) -> None:
    store = Store(lambda key: None)
    store.put(JOB, job(version=2, status=validated()))
    for each in shown:
        store.put(POD, each)
    seen = fresh(uid="j", raw_status=validated(), remains=store.remains("j"))
    apply(live, store, seen, Plan(create=[{"kind": "Job", **run("r2")}], is_final=True), NOW)  # type: ignore[arg-type]


def test_no_attempt_begins_beside_a_pod_that_no_watch_has_shown() -> None:
    """Its Job was deleted, for example by spec.suspend, before the watch of pods has shown the pod."""
    live = Training(job(version=2, status=validated()), pod())

    with pytest.raises(OutdatedError):
        begin_an_attempt(live)
    assert (live.created, live.asked) == ([], ["finetune.dev/job-uid=j"])


def test_an_attempt_begins_where_all_pods_were_observed_and_that_costs_one_request() -> None:
    """What they mean was decided."""
    for pods in ([], [pod(phase="Failed")]):
        live = Training(job(version=2, status=validated()), *pods)
        begin_an_attempt(live, *pods)
        assert (len(live.created), len(live.asked)) == (1, 1)


class Refusing(Live):
    """An API server on which the job has changed, so that no status is written. Notes what it deletes."""

    def __init__(self, present: Object) -> None:
        super().__init__(present)
        self.deleted: list[str] = []

    def delete(self, kind: str, name: str, namespace: str) -> None:
        self.deleted.append(name)

    def apply_status(self, body: Object, manager: str) -> Object:
        raise ApiError(409, "the object has been modified")


@pytest.mark.parametrize(("is_final", "deleted"), [(False, []), (True, ["a1"])])
def test_an_attempt_is_deleted_after_its_end_is_on_record_unless_the_job_ends(
    is_final: bool, deleted: list[str]
) -> None:
    observed = job(version=2, status=validated())
    store = Store(lambda key: None)
    store.put(JOB, observed)
    api = Refusing(job(version=2, status=validated()))

    plan = Plan(delete_jobs=["a1"], status={"conditions": []}, is_final=is_final)

    with pytest.raises(OutdatedError):
        apply(api, store, fresh(uid="j", raw_status=validated()), plan, NOW)  # type: ignore[arg-type]

    assert api.deleted == deleted


class FullOfEvents(Live):
    """An API server that answers each Event with an error. Notes what it writes."""

    def __init__(self, present: Object, error: ApiError) -> None:
        super().__init__(present)
        self.error, self.written = error, list[Object]()

    def create(self, body: Object) -> Object | None:
        assert body["kind"] == "Event"
        raise self.error

    def apply_status(self, body: Object, manager: str) -> Object:
        self.written.append(body["status"])
        return self.present or {}


def told(error: ApiError) -> FullOfEvents:
    """Carries out a plan with two Events and a status."""
    observed = job(version=2, status=validated())
    store = Store(lambda key: None)
    store.put(JOB, observed)
    api = FullOfEvents(job(version=3, status=validated()), error)
    plan = Plan(events=[Event("Warning", "Failed", "M."), Event("Normal", "R", "M.")], status={"conditions": []})
    apply(api, store, fresh(uid="j", raw_status=validated()), plan, NOW)  # type: ignore[arg-type]
    return api


@pytest.mark.parametrize(
    "error",
    [
        ApiError(403, 'events is forbidden: User "o" cannot create resource "events" in the namespace "team"'),
        ApiError(422, 'Event "t" is invalid'),
        ApiError(500, 'Internal error occurred: failed calling webhook "policy": connection refused'),
    ],
)
def test_a_status_is_written_also_if_its_events_are_refused(error: ApiError, caplog: pytest.LogCaptureFixture) -> None:
    api = told(error)

    assert api.written == [{"conditions": []}]
    assert f"refused Event Failed of team/tickets: {error.message}" in caplog.text


@pytest.mark.parametrize("error", [NamespaceGoneError(403, "is being terminated"), ApiError(503, "away")])
def test_other_errors_of_an_event_stop_the_plan_so_that_no_event_is_lost(error: ApiError) -> None:
    with pytest.raises(type(error)):
        told(error)
