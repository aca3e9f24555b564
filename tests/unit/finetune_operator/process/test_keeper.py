"""The keeper: no decision before the store is filled, and repairs after a watch has listed anew."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from finetune_operator.process import keeper
from finetune_operator.process.keeper import Keeper
from finetune_operator.store.store import JOB, Store
from tests.unit.finetune_operator.cluster.test_repair import Lists
from tests.unit.finetune_operator.store.objects import job


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROGRESS", "STALLED", "LAG", "SETTLE"):
        monkeypatch.setattr(keeper, name, timedelta(milliseconds=20))


class Story:
    """A keeper of a store, over lists that the story changes."""

    def __init__(self) -> None:
        self.lists = Lists({JOB: [job("a", 5)]})
        self.store = Store(lambda key: None)
        self.restarts: list[str] = []
        self.keeper = Keeper(self.lists, self.store, (), self.restarts.append)  # type: ignore[arg-type]


def play(story: Callable[[Story], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(Story()), 20))  # type: ignore[arg-type]


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110  nothing announces that it holds
        await asyncio.sleep(0.005)


def test_the_store_is_filled_once_the_watches_have_shown_every_object() -> None:
    async def story(it: Story) -> None:
        filling = asyncio.create_task(it.keeper.fill())
        await until(lambda: it.keeper.waits_for == "The operator has read 0 of 1 objects.")
        assert not filling.done()
        it.store.put(JOB, job("a", 5))
        await filling
        assert it.keeper.waits_for is None

    play(story)


def test_an_object_that_is_deleted_during_the_start_is_not_waited_for() -> None:
    async def story(it: Story) -> None:
        filling = asyncio.create_task(it.keeper.fill())
        await until(lambda: len(it.lists.asked) > 0)
        it.lists.objects.clear()
        await filling

    play(story)


def test_an_api_server_that_cannot_be_listed_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(it: Story) -> None:
        refusals = iter([ConnectionError("refused"), ConnectionError("refused")])
        metadata = it.lists.metadata

        def first_refused(*arguments: str) -> object:
            for error in refusals:
                raise error
            return metadata(*arguments)

        monkeypatch.setattr(it.lists, "metadata", first_refused)
        monkeypatch.setattr(keeper, "ASK_AGAIN", timedelta(milliseconds=5))
        it.store.put(JOB, job("a", 5))
        await it.keeper.fill()

    play(story)


def test_a_deletion_that_no_watch_reported_is_repaired_after_a_new_list() -> None:
    async def story(it: Story) -> None:
        it.store.put(JOB, job("a", 5))
        it.store.put(JOB, job("gone", 7, name="gone"))
        keeping = asyncio.create_task(it.keeper.keep())
        await asyncio.sleep(0)
        it.keeper.listed()
        await until(lambda: it.store.uids(JOB) == {"a": 5})
        assert it.restarts == [], "a list never reports deletions, so the watches are in order"
        keeping.cancel()

    play(story)


def test_a_change_that_no_watch_reports_is_read_and_the_watches_are_started_anew() -> None:
    async def story(it: Story) -> None:
        it.store.put(JOB, job("a", 3))
        await it.keeper.repair()
        assert it.store.uids(JOB) == {"a": 5}
        assert it.restarts == ["they missed 1 changes"]

    play(story)


def test_a_change_that_a_watch_reports_a_moment_after_the_list_is_in_order() -> None:
    async def story(it: Story) -> None:
        repairing = asyncio.create_task(it.keeper.repair())
        await until(lambda: len(it.lists.asked) > 0)
        it.store.put(JOB, job("a", 5))
        await repairing
        assert it.restarts == []

    play(story)
