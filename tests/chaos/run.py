"""Runs many tries on one cluster, side by side where they do not disturb each other."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from tests.chaos import trial
from tests.chaos.figures.judge import Outcome
from tests.chaos.scene import Lane, Scene
from tests.chaos.table import Task
from tests.chaos.trial import Undisturbed

ALONE_TOGETHER = 60
"""Most tries in a group of faults that hit one job: some of each."""
Tell = Callable[[Task, Outcome | Exception], None]
"""Is told what each try shows, or why it could not be made. Called from several threads, one at a time for each."""


@dataclass(frozen=True)
class Run:
    """The tries of one run. `deadline`: time.monotonic() after which no more begins."""

    scene: Scene
    basis: Undisturbed
    tell: Tell
    deadline: float = float("inf")

    def make(self, tasks: Sequence[Task]) -> None:
        """Makes these tries, in about this order."""
        for group in groups(tasks, len(self.scene.lanes)):
            if group[0].fault.shared:
                self._together(group)
            else:
                self._side_by_side(group)

    def _side_by_side(self, tasks: Sequence[Task]) -> None:
        free: SimpleQueue[Lane] = SimpleQueue()
        for lane in self.scene.lanes:
            free.put(lane)

        def one(task: Task) -> None:
            lane = free.get()
            try:
                if time.monotonic() < self.deadline:
                    self.tell(task, trial.alone(lane, task, self.basis))
            except Exception as error:
                self.tell(task, error)
            finally:
                free.put(lane)

        with ThreadPoolExecutor(len(self.scene.lanes)) as pool:
            list(pool.map(one, tasks))

    def _together(self, tasks: Sequence[Task]) -> None:
        if time.monotonic() >= self.deadline:
            return
        try:
            for task, found in trial.together(self.scene.lanes, tasks, self.basis):
                self.tell(task, found)
        except Exception as error:
            for task in tasks:
                self.tell(task, error)


def groups(tasks: Sequence[Task], lanes: int) -> Iterator[list[Task]]:
    """Yields the tries that are made at the same time, in about this order: those of faults that hit one job, and up to
    `lanes` tries of the same shared fault. Later tries are taken forward for both, because at the end of a group some
    lanes wait for the others."""
    left = list(tasks)
    while left:
        first = left[0].fault
        same = [task for task in left if (task.fault is first if first.shared else not task.fault.shared)]
        group = same[: lanes if first.shared else ALONE_TOGETHER]
        left = [task for task in left if task not in group]
        yield group
