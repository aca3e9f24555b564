"""Work in a thread beside the training."""

import time
from collections.abc import Callable
from threading import Event, Thread

from finetune_trainer.checkpoints.background import Background
from finetune_trainer.pod.liveness.heartbeat import beats


def test_work_runs_beside_and_its_processor_time_is_counted() -> None:
    background, begun, go = Background(), Event(), Event()

    def work(check: Callable[[int], None]) -> None:
        begun.set()
        go.wait(10)
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            check(1)

    background.start(work)
    assert begun.wait(10)
    assert background.busy
    assert not background.wait(0)
    go.set()
    assert background.wait(10)
    assert 0.05 <= background.cpu_seconds < 1


def test_the_processor_time_of_the_works_own_threads_counts() -> None:
    """An upload over several connections has a thread for each."""
    background = Background()

    def part(check: Callable[[int], None]) -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            check(1)

    def work(check: Callable[[int], None]) -> None:
        threads = [Thread(target=part, args=(check,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for twice in (1, 2):
        background.start(work)
        assert background.wait(30)
        assert 0.15 * twice <= background.cpu_seconds < 2


def test_work_is_a_sign_of_life_only_while_it_is_waited_for() -> None:
    background, over = Background(), Event()
    checked = Event()

    def work(check: Callable[[int], None]) -> None:
        while not over.is_set():
            check(1)
            checked.set()

    before = beats()
    background.start(work)
    assert checked.wait(10)
    assert beats() == before, "a training that hangs beside an upload must be noticed"
    assert not background.wait(0.05)
    assert beats() > before
    over.set()
    assert background.wait(10)


def test_cancelled_work_ends_at_its_next_check() -> None:
    background, begun = Background(), Event()

    def work(check: Callable[[int], None]) -> None:
        while True:
            begun.set()
            check(0)
            time.sleep(0.001)

    background.start(work)
    assert begun.wait(10)
    assert background.cancel(10)
