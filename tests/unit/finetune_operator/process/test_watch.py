"""The watches are started again whenever they end, and say what they wait for."""

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar

import pytest

from finetune_operator.process import watch
from finetune_operator.process.watch import Watches
from finetune_operator.store.store import JOB, KINDS, Store
from tests.unit.finetune_operator.store import objects


def store() -> Store:
    return Store(lambda key: None)


def test_before_kopf_runs_the_watches_name_what_they_wait_for() -> None:
    async def story() -> str | None:
        return Watches(store()).waits_for()

    assert asyncio.run(story()) == f"The watch of {', '.join(sorted(KINDS))} has not started yet."


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
    monkeypatch.setattr(watch, "KopfRun", Scripted)
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
