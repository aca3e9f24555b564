"""Work in several threads, which ends together."""

from collections.abc import Callable
from threading import Barrier, Event

import pytest

from finetune_trainer.pod.at_once import AT_ONCE, Abandoned, each_at_once


def test_several_items_are_worked_on_at_the_same_time() -> None:
    together = Barrier(AT_ONCE, timeout=10)
    done: list[int] = []

    def work(item: int, needed: Callable[[], None]) -> None:
        together.wait()
        done.append(item)

    each_at_once(work, range(AT_ONCE))
    assert sorted(done) == list(range(AT_ONCE))


def test_one_failure_ends_the_work_that_is_running_and_starts_no_more() -> None:
    started, ended, begun = Event(), Event(), []

    def work(item: int, needed: Callable[[], None]) -> None:
        begun.append(item)
        if item == 0:
            assert started.wait(10)
            raise ValueError("broken")
        started.set()
        try:
            while True:
                needed()
        except Abandoned:
            ended.set()
            raise

    with pytest.raises(ValueError, match="broken"):
        each_at_once(work, range(100))
    assert ended.wait(10)
    assert len(begun) <= AT_ONCE + 1


def test_no_items_are_no_work() -> None:
    each_at_once(lambda item, needed: None, [])
