"""Which watches the operator needs, and what it says while one of them is missing. Tasks have the names that kopf gives
to its watches; the tests in tests/integration show that kopf does."""

from collections.abc import Iterable
from itertools import chain, islice

import pytest

from finetune_operator.process import kopf_run as module
from finetune_operator.process.kopf_run import KopfRun, _settings, watch_tasks
from finetune_operator.store.store import CLUSTER_SCOPED, JOB, KINDS, POD, Store
from tests.unit.finetune_operator.store import objects


def store() -> Store:
    return Store(lambda key: None)


def all_watches(*namespaces: str) -> set[str]:
    return set(chain(*watch_tasks(namespaces).values()))


@pytest.mark.parametrize("namespaces", [(), ("tickets",), ("tickets", "search")])
def test_it_is_ready_once_every_resource_is_watched_in_every_namespace(namespaces: tuple[str, ...]) -> None:
    run = KopfRun(store(), namespaces)
    assert set(run.missing) == set(KINDS)
    run.look(all_watches(*namespaces))
    assert run.missing == []


def test_a_missing_watch_is_named() -> None:
    run = KopfRun(store(), ("tickets", "search"))
    run.look(all_watches("tickets", "search") - {"watcher for pods.v1@search"})
    assert run.missing == [POD]


def test_the_watch_of_another_namespace_or_of_the_cluster_does_not_count() -> None:
    run = KopfRun(store(), ("tickets",))
    run.look(all_watches("search") | all_watches())
    assert set(run.missing) == set(KINDS) - set(CLUSTER_SCOPED)


def test_a_watch_that_has_ended_ends_the_run() -> None:
    run = KopfRun(store(), ("tickets", "search"))
    run.look(all_watches("tickets", "search"))
    run.look(all_watches("tickets", "search") - {"watcher for pods.v1@search"})
    assert run.outcome() == "kopf's task 'watcher for pods.v1@search' has ended"
    assert set(run.missing) == set(KINDS)


@pytest.mark.parametrize(("namespaces", "ends"), [(("tickets",), True), ((), False)])
def test_a_kind_that_was_not_served_at_the_start_ends_the_run_only_if_kopf_does_not_look_again(
    namespaces: tuple[str, ...], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SERVED_SECONDS", -1.0)
    run = KopfRun(store(), namespaces)
    tasks = {*all_watches(*namespaces), module.LOGIN_TASK} - watch_tasks(namespaces)[JOB]
    run.look(tasks)
    said = run.outcome()
    assert said == (f"the API server did not serve {JOB} when they started" if ends else "kopf has ended")


def test_a_namespace_that_refuses_is_asked_for_ever_and_the_whole_cluster_is_not() -> None:
    pauses = _settings(("tickets",)).networking.error_backoffs
    whole_cluster = _settings(()).networking.error_backoffs
    assert isinstance(pauses, Iterable)
    assert isinstance(whole_cluster, Iterable)
    for _ in range(2):  # kopf iterates anew for each request
        assert list(islice(pauses, 100))[-1] == 30
    assert len(list(islice(whole_cluster, 100))) < 100


def test_news_of_a_run_that_was_left_behind_is_old() -> None:
    kept = store()
    run = KopfRun(kept, ())
    run._feed(JOB, None, objects.job("a"))
    run.stop("test")
    run._feed(JOB, "MODIFIED", objects.job("b"))
    assert kept.uids(JOB) == {"a": 1}
