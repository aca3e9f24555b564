"""Tries run side by side where they do not disturb each other."""

from tests.chaos.run import ALONE_TOGETHER, groups
from tests.chaos.table import FAULTS, Fault, Task


def names(tasks: list[Task]) -> list[str]:
    return [f"{task.fault.name} {task.seed}" for task in tasks]


def some(shared: bool, count: int) -> list[Fault]:
    return [fault for fault in FAULTS if fault.shared is shared][:count]


def tries(faults: list[Fault], count: int) -> list[Task]:
    return [Task(fault, fault.phases[0], number) for number in range(count) for fault in faults]


def test_faults_of_one_job_run_side_by_side() -> None:
    tasks = tries(some(False, 2), 3)

    assert [names(group) for group in groups(tasks, lanes=2)] == [names(tasks)]


def test_a_shared_fault_comes_once_for_as_many_tries_as_there_are_lanes() -> None:
    (own,), (shared,) = some(False, 1), some(True, 1)

    made = [names(group) for group in groups(tries([own, shared], 3), lanes=2)]

    one, other = own.name, shared.name
    assert made == [[f"{one} 0", f"{one} 1", f"{one} 2"], [f"{other} 0", f"{other} 1"], [f"{other} 2"]]


def test_shared_faults_do_not_wait_for_every_try_of_the_others() -> None:
    (own,), (shared,) = some(False, 1), some(True, 1)

    made = list(groups(tries([own, shared], ALONE_TOGETHER + 1), lanes=2))

    assert [len(group) for group in made[:2]] == [ALONE_TOGETHER, 2]


def test_two_shared_faults_never_come_at_once() -> None:
    assert [len({task.fault.name for task in group}) for group in groups(tries(some(True, 3), 2), lanes=4)] == [1, 1, 1]


def test_every_try_is_made_once() -> None:
    tasks = tries(list(FAULTS), 5)

    made = [name for group in groups(tasks, lanes=3) for name in names(group)]

    assert sorted(made) == sorted(names(tasks))
