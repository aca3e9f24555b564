"""The queue's promises: each key at most once, never two workers on one, failures come back with growing pauses."""

import asyncio
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.observed.world import Key
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
        assert await asyncio.wait_for(queue.get(), 30) == A

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
        assert await asyncio.wait_for(queue.get(), 30) == A
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
                taken = await asyncio.wait_for(queue.get(), 30)
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


async def _order(queue: WorkQueue, count: int) -> list[Key]:
    keys = []
    for _ in range(count):
        keys.append(await queue.get())
        queue.done(keys[-1])
    return keys


def test_a_lone_job_does_not_wait_behind_another_tenants_thousands() -> None:
    async def run() -> list[Key]:
        queue = WorkQueue()
        for i in range(5000):
            queue.add(("many", str(i)))
        queue.add(("lone", "first"))
        return await _order(queue, 3)

    assert asyncio.run(run()) == [("many", "0"), ("lone", "first"), ("many", "1")]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), unique=True, min_size=1, max_size=60))
def test_namespaces_take_turns_and_each_keeps_its_order(added: list[tuple[str, int]]) -> None:
    async def run() -> list[Key]:
        queue = WorkQueue()
        for namespace, number in added:
            queue.add((namespace, str(number)))
        return await _order(queue, len(added))

    keys = asyncio.run(run())
    for namespace in "abc":
        own = [(namespace, str(number)) for name, number in added if name == namespace]
        assert [key for key in keys if key[0] == namespace] == own
    for start, (namespace, _) in enumerate(keys):
        rest = [key[0] for key in keys[start + 1 :]]
        until = rest.index(namespace) if namespace in rest else len(rest)
        assert {name for name in rest if name != namespace} <= set(rest[:until]), "a namespace had two turns"


def test_the_longest_wait_is_that_of_the_key_that_was_added_first() -> None:
    async def run() -> tuple[int, bool, float]:
        queue = WorkQueue()
        queue.add(("a", "1"))
        await asyncio.sleep(0.01)
        queue.add(("a", "2"))
        depth, waits = queue.depth(), queue.longest_wait() >= timedelta(seconds=0.01)
        await _order(queue, 2)
        return depth, waits, queue.longest_wait().total_seconds()

    assert asyncio.run(run()) == (2, True, 0.0)


def test_a_pause_is_at_least_what_the_api_server_asks_for() -> None:
    async def run() -> timedelta:
        queue = WorkQueue()
        queue.add(("a", "1"))
        return queue.failed(await queue.get(), timedelta(seconds=7))

    assert asyncio.run(run()) == timedelta(seconds=7)


def test_a_queue_stands_still_only_while_keys_wait_and_nobody_takes_one() -> None:
    async def run() -> list[bool]:
        queue, still = WorkQueue(), timedelta(seconds=0.02)
        found = [queue.longest_standstill() >= still]
        await asyncio.sleep(0.03)
        queue.add(("a", "1"))
        queue.add(("a", "2"))
        found.append(queue.longest_standstill() >= still)
        await asyncio.sleep(0.03)
        found.append(queue.longest_standstill() >= still)
        await queue.get()
        found.append(queue.longest_standstill() >= still)
        return found

    assert asyncio.run(run()) == [False, False, True, False]
