"""Runs many tries on one cluster, side by side where they do not disturb each other."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from tests.chaos import trial
from tests.chaos.figures.judge import Outcome
from tests.chaos.scene import LANES, Lane, Scene
from tests.chaos.table import Task
from tests.chaos.trial import Undisturbed

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
        for group in groups(tasks):
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


def groups(tasks: Sequence[Task], lanes: int = LANES) -> Iterator[list[Task]]:
    """Yields the tries that are made at the same time: those of faults that hit one job, as far as no shared fault
    comes between, and up to `lanes` tries of the same shared fault, for which later ones are taken forward."""
    left, group = list(tasks), []
    while left:
        task = left.pop(0)
        if not task.fault.shared:
            group.append(task)
            continue
        if group:
            yield group
            group = []
        same = [task, *(other for other in left if other.fault is task.fault)][:lanes]
        left = [other for other in left if other not in same]
        yield same
    if group:
        yield group
