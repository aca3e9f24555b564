"""Which watches the operator needs, and what it says while one of them is missing. Tasks have the names that kopf gives
to its watches; the tests in tests/integration show that kopf does."""

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import ClassVar

import pytest

from finetune_operator.process import watch
from finetune_operator.process.watch import Watches, _Run, _settings, watch_tasks
from finetune_operator.store.store import CLUSTER_SCOPED, JOB, KINDS, POD, Store
from tests.unit.finetune_operator.store import objects


def store() -> Store:
    return Store(lambda key: None)


def all_watches(*namespaces: str) -> set[str]:
    return set(chain(*watch_tasks(namespaces).values()))


@pytest.mark.parametrize("namespaces", [(), ("tickets",), ("tickets", "search")])
def test_it_is_ready_once_every_resource_is_watched_in_every_namespace(namespaces: tuple[str, ...]) -> None:
    run = _Run(store(), namespaces)
    assert set(run.missing) == set(KINDS)
    run.look(all_watches(*namespaces))
    assert run.missing == []


def test_before_kopf_runs_the_watches_name_what_they_wait_for() -> None:
    async def story() -> str | None:
        return Watches(store()).waits_for()

    assert asyncio.run(story()) == f"The watch of {', '.join(sorted(KINDS))} has not started yet."


def test_a_missing_watch_is_named() -> None:
    run = _Run(store(), ("tickets", "search"))
    run.look(all_watches("tickets", "search") - {"watcher for pods.v1@search"})
    assert run.missing == [POD]


def test_the_watch_of_another_namespace_or_of_the_cluster_does_not_count() -> None:
    run = _Run(store(), ("tickets",))
    run.look(all_watches("search") | all_watches())
    assert set(run.missing) == set(KINDS) - set(CLUSTER_SCOPED)


def test_a_watch_that_has_ended_ends_the_run() -> None:
    run = _Run(store(), ("tickets", "search"))
    run.look(all_watches("tickets", "search"))
    run.look(all_watches("tickets", "search") - {"watcher for pods.v1@search"})
    assert run.outcome() == "kopf's task 'watcher for pods.v1@search' has ended"
    assert set(run.missing) == set(KINDS)


@pytest.mark.parametrize(("namespaces", "ends"), [(("tickets",), True), ((), False)])
def test_a_kind_that_was_not_served_at_the_start_ends_the_run_only_if_kopf_does_not_look_again(
    namespaces: tuple[str, ...], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SERVED_SECONDS", -1.0)
    run = _Run(store(), namespaces)
    tasks = {*all_watches(*namespaces), watch.LOGIN_TASK} - watch_tasks(namespaces)[JOB]
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


class Scripted:
    """Stands in for a run of kopf: it ends at once, or is up until it is stopped."""

    made: ClassVar[list["Scripted"]] = []
    lives = False

    def __init__(self, *_: object) -> None:
        self.missing: list[str] = [] if self.lives else [JOB]
        self.stopped: str | None = None
        self.made.append(self)

    def start(self) -> None:
        """Nothing is started."""

    def stop(self, reason: str) -> None:
        self.stopped = reason

    def outcome(self) -> str | None:
        return self.stopped if self.lives else "kopf failed"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Scripted]:
    Scripted.made.clear()
    monkeypatch.setattr(watch, "_Run", Scripted)
    return Scripted.made


async def run_while(watches: Watches, holds: Callable[[], bool]) -> None:
    running = asyncio.create_task(watches.run(lambda why: None))
    while holds():  # noqa: ASYNC110  nothing announces that it holds
        await asyncio.sleep(0.005)
    watches.stop()
    await asyncio.wait_for(running, 5)


def test_failed_watches_are_started_again_with_growing_pauses(
    runs: list[Scripted], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "PAUSES_SECONDS", (0.01, 0.02, 0.03))
    monkeypatch.setattr(Scripted, "lives", False)

    async def story() -> None:
        await run_while(Watches(store()), lambda: len(runs) < 5)

    with caplog.at_level("WARNING"):
        asyncio.run(story())
    pauses = [record.args[1] for record in caplog.records if isinstance(record.args, tuple)]
    assert pauses[:4] == [0.01, 0.02, 0.03, 0.03]


def test_watches_that_do_not_show_an_own_write_are_started_again(
    runs: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "UNSEEN_SECONDS", 0.05)
    monkeypatch.setattr(Scripted, "lives", True)
    kept = store()
    kept.put(JOB, objects.job(), own=True)

    async def story() -> None:
        await run_while(Watches(kept), lambda: len(runs) < 2)

    asyncio.run(story())
    assert runs[0].stopped == "they have not shown a write of this operator for 0 s"
    assert kept.longest_unseen() == 0


@pytest.mark.parametrize("lives", [True, False])
def test_watches_that_stay_down_are_a_fault_of_the_process(
    lives: bool, runs: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DOWN_SECONDS", 0.05)
    monkeypatch.setattr(watch, "PAUSES_SECONDS", (0.01,))
    monkeypatch.setattr(Scripted, "lives", lives)

    async def story() -> str | None:
        watches = Watches(store())
        until = time.monotonic() + 0.1
        await run_while(watches, lambda: time.monotonic() < until or not runs)
        return watches.fault()

    fault = asyncio.run(story())
    assert fault is None if lives else fault is not None and fault.startswith("the watches have been down for")


def test_news_of_a_run_that_was_left_behind_is_old() -> None:
    kept = store()
    run = _Run(kept, ())
    run._feed(JOB, None, objects.job("a"))
    run.stop("test")
    run._feed(JOB, "MODIFIED", objects.job("b"))
    assert kept.uids(JOB) == {"a": 1}
