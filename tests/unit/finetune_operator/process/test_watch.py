"""Which watches the operator needs, and what it says while one of them is missing. Tasks have the names that kopf gives
to its watches; the tests in tests/integration show that kopf does."""

import asyncio
from collections.abc import Coroutine, Iterable
from itertools import islice
from typing import Any

import pytest

from finetune_operator.process.watch import WATCHED, Watches, _settings

JOBS, *OTHERS = WATCHED
READY: tuple[str | None, str | None] = (None, None)


async def said_with(watches: Watches, tasks: Iterable[str]) -> tuple[str | None, str | None]:
    """The fault, and what the watches wait for, while tasks of these names run."""
    running = [asyncio.create_task(asyncio.Event().wait(), name=name) for name in tasks]
    said = watches.fault(), watches.waits_for()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return said


def watch_of(resource: str, namespace: str | None) -> str:
    return f"watcher for {resource}@{namespace}"


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


@pytest.mark.parametrize("namespaces", [(), ("tickets",), ("tickets", "search")])
def test_it_is_ready_once_every_resource_is_watched_in_every_namespace(namespaces: tuple[str, ...]) -> None:
    async def story() -> None:
        watches = Watches(lambda key: None, namespaces)
        fault, waits_for = await said_with(watches, [])
        assert fault is None
        assert waits_for is not None
        tasks = [watch_of(resource, namespace) for namespace in namespaces or [None] for resource in WATCHED]
        assert await said_with(watches, tasks) == READY

    run(story())


def test_a_missing_watch_is_named_with_its_namespace() -> None:
    async def story() -> None:
        watches = Watches(lambda key: None, ("tickets", "search"))
        tasks = [watch_of(resource, "tickets") for resource in WATCHED]
        tasks += [watch_of(resource, "search") for resource in OTHERS]
        _, waits_for = await said_with(watches, tasks)
        assert waits_for == f"The watch of {JOBS} in search has not started yet."

    run(story())


def test_the_watch_of_another_namespace_or_of_the_cluster_does_not_count() -> None:
    async def story() -> None:
        tasks = [watch_of(resource, other) for resource in WATCHED for other in ("search", None)]
        _, waits_for = await said_with(Watches(lambda key: None, ("tickets",)), tasks)
        assert waits_for is not None
        assert waits_for.count("in tickets") == len(WATCHED)

    run(story())


def test_a_watch_that_has_ended_in_one_namespace_is_a_fault() -> None:
    async def story() -> None:
        watches = Watches(lambda key: None, ("tickets", "search"))
        tasks = [watch_of(resource, namespace) for namespace in ("tickets", "search") for resource in WATCHED]
        assert await said_with(watches, tasks) == READY
        fault, _ = await said_with(watches, [task for task in tasks if task != watch_of(JOBS, "search")])
        assert fault == f"kopf's task {watch_of(JOBS, 'search')!r} has ended"

    run(story())


def test_a_resource_that_was_not_served_at_the_start_is_a_fault_only_if_kopf_does_not_look_again() -> None:
    async def story() -> None:
        fault, _ = await said_with(
            Watches(lambda key: None, ("tickets",)), [watch_of(resource, "tickets") for resource in OTHERS]
        )
        assert fault == f"the API server did not serve {JOBS} in tickets when the operator started"
        fault, _ = await said_with(Watches(lambda key: None), [watch_of(resource, None) for resource in OTHERS])
        assert fault is None, "kopf waits for the definition"

    run(story())


def test_a_namespace_that_refuses_is_asked_for_ever_and_the_whole_cluster_is_not() -> None:
    pauses = _settings(("tickets",)).networking.error_backoffs
    whole_cluster = _settings(()).networking.error_backoffs
    assert isinstance(pauses, Iterable)
    assert isinstance(whole_cluster, Iterable)
    for _ in range(2):  # kopf iterates anew for each request
        assert list(islice(pauses, 100))[-1] == 30
    assert len(list(islice(whole_cluster, 100))) < 100
