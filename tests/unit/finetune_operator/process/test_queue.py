"""The queue's promises: each key at most once, never two workers on one, failures come back with growing pauses."""

import asyncio
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.process.queue import FIRST_PAUSE, LONGEST_PAUSE, WorkQueue

A, B = ("ns", "a"), ("ns", "b")
NOTHING = 0.02


async def nothing_comes(queue: WorkQueue) -> bool:
    try:
        await asyncio.wait_for(queue.get(), NOTHING)
    except TimeoutError:
        return True
    return False


def test_a_key_added_twice_is_worked_on_once() -> None:
    async def story() -> None:
        queue = WorkQueue()
        queue.add(A)
        queue.add(A)
        assert await queue.get() == A
        assert await nothing_comes(queue)

    asyncio.run(story())


def test_a_key_added_while_it_is_worked_on_comes_again_afterwards_and_not_before() -> None:
    async def story() -> None:
        queue = WorkQueue()
        queue.add(A)
        await queue.get()
        queue.add(A)
        assert await nothing_comes(queue)
        queue.done(A)
        assert await asyncio.wait_for(queue.get(), 1) == A

    asyncio.run(story())


def test_a_failed_key_comes_back_with_growing_pauses_up_to_a_limit() -> None:
    async def story() -> None:
        queue = WorkQueue()
        pauses = []
        for _ in range(12):
            queue.add(A)
            await queue.get()
            pauses.append(queue.failed(A))
        assert pauses[0] == FIRST_PAUSE
        assert pauses == sorted(pauses)
        assert pauses[-1] == LONGEST_PAUSE
        queue.add(A)
        await queue.get()
        queue.done(A)
        queue.add(A)
        await queue.get()
        assert queue.failed(A) == FIRST_PAUSE

    asyncio.run(story())


def test_the_sooner_of_two_timers_counts() -> None:
    async def story() -> None:
        queue = WorkQueue()
        queue.add_after(A, timedelta(milliseconds=1))
        queue.add_after(A, timedelta(hours=1))
        queue.add_after(B, timedelta(hours=1))
        assert await asyncio.wait_for(queue.get(), 1) == A
        queue.done(A)
        assert await nothing_comes(queue)

    asyncio.run(story())


@given(st.lists(st.tuples(st.sampled_from("adf"), st.sampled_from([A, B])), max_size=40))
def test_no_key_is_lost_and_none_is_held_twice(steps: list[tuple[str, tuple[str, str]]]) -> None:
    """Random adds and ends, against the plainest model: a set of wanted keys."""

    async def story() -> None:
        queue, wanted, held = WorkQueue(), set(), set()
        for action, key in steps:
            if action == "a":
                queue.add(key)
                wanted.add(key)
            elif key in held:
                held.discard(key)
                queue.done(key) if action == "d" else queue.failed(key)
            while wanted - held:
                taken = await asyncio.wait_for(queue.get(), 1)
                assert taken in wanted
                assert taken not in held
                wanted.discard(taken)
                held.add(taken)

    asyncio.run(story())


def test_the_longest_work_is_that_of_the_key_a_worker_took_first() -> None:
    async def story() -> None:
        queue = WorkQueue()
        assert queue.longest_work() == (None, timedelta())
        for key in (B, A):
            queue.add(key)
            await queue.get()
        key, since = queue.longest_work()
        assert key == B
        assert timedelta() <= since < timedelta(minutes=1)
        queue.done(B)
        assert queue.longest_work()[0] == A

    asyncio.run(story())
