"""Supervisor: runs the parts of the operator and makes sure that the process either works or ends.

Each part runs in a thread with an event loop of its own. The main thread only supervises, so no part can keep it from
noticing a signal, a part that has ended, or an event loop that is blocked. After any of these the parts get a deadline
to end. When it passes, the stacks of all threads and tasks are logged and the process exits.
"""

import asyncio
import contextlib
import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

DEADLINE_SECONDS = 8.0
"""How long the parts may take to end. The pod's terminationGracePeriodSeconds has to be longer."""
LAST_RESORT_SECONDS = 2.0
"""How long after the deadline the process ends even if the main thread hangs too."""
CHECK_SECONDS = 1.0
FAULTY_CHECKS = 5
"""A fault that this many checks in a row have found does not go away: the process ends."""
UNANSWERED_CHECKS = 30
"""An event loop that has not answered this many checks in a row is blocked. One that is only slow answers earlier."""
DEAD_SECONDS = 60.0
"""The process ends when the main thread has not checked anything for so long, as when an extension holds the GIL."""
FAILED = 1
"""Exit code when a part has failed. After a signal it is 0, or 128 and the signal's number when the deadline passed."""

_FRAMES, _AWAITED = ("cr_frame", "gi_frame", "ag_frame"), ("cr_await", "gi_yieldfrom", "ag_await")

logger = logging.getLogger(__name__)


class Part(Protocol):
    """A part of the operator. All its methods are called in the event loop of its thread."""

    name: str

    async def run(self, ending: Callable[[str], None]) -> None:
        """Work until `stop` is called. Calls `ending` with the reason as soon as the part does not work any more,
        however long `run` then takes to return."""

    def stop(self) -> None:
        """Ask `run` to return."""

    def fault(self) -> str | None:
        """What keeps the part from its work for good, in one sentence; None while it works."""

    def waits_for(self) -> str | None:
        """What the part needs before it can begin its work, in one sentence; None once it works."""


class Supervisor:
    """Runs `parts` until a signal or until one of them fails. To be used from the main thread."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._troubles: queue.SimpleQueue[signal.Signals | str] = queue.SimpleQueue()
        self._runners = [_Runner(part, self._troubles.put) for part in parts]
        self._ends = False

    def run(self) -> int:
        """Supervise until the end. Returns the exit code; parts that did not end in time still run then."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self._troubles.put(signal.Signals(number)))
        for runner in self._runners:
            runner.thread.start()
        trouble = self._first_trouble()
        self._ends = True
        _end_unless_called_within(DEADLINE_SECONDS + LAST_RESORT_SECONDS)
        by_signal = isinstance(trouble, signal.Signals)
        why = f"received {trouble.name}" if isinstance(trouble, signal.Signals) else str(trouble)
        logger.log(logging.INFO if by_signal else logging.CRITICAL, "The operator stops: %s.", why)
        left = self._stop_all()
        if left:
            _log_stacks(left)
        if isinstance(trouble, signal.Signals):
            return 128 + trouble if left else 0
        return FAILED

    def health(self) -> str | None:
        """Why the process should be restarted, in one sentence; None while it works. From any thread."""
        if self._ends:
            return "The operator is stopping."
        return next((fault for runner in self._runners if (fault := runner.fault())), None)

    def readiness(self) -> str | None:
        """Why the operator does not work yet or any more, in one sentence; None while it works. From any thread."""
        return self.health() or next((why for runner in self._runners if (why := runner.waits_for)), None)

    def _first_trouble(self) -> signal.Signals | str:
        """Wait for the first signal, end of a part, or fault that lasts."""
        while True:
            _end_unless_called_within(DEAD_SECONDS)
            with contextlib.suppress(queue.Empty):
                return self._troubles.get(timeout=CHECK_SECONDS)
            for runner in self._runners:
                runner.ask()
                if runner.has_failed and (fault := runner.fault()):
                    return fault

    def _stop_all(self) -> "list[_Runner]":
        """Ask every part to end. Returns those that have not ended when the deadline has passed."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        for runner in self._runners:
            runner.stop()
        for runner in self._runners:
            runner.thread.join(max(0.0, deadline - time.monotonic()))
        return [runner for runner in self._runners if runner.thread.is_alive()]


class _Runner:
    """One part in its thread. `report` takes a sentence when the part does not work any more."""

    def __init__(self, part: Part, report: Callable[[str], None]) -> None:
        self.name = part.name
        self.thread = threading.Thread(target=self._run, name=part.name, daemon=True)
        self._part, self._report = part, report
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False
        self._unanswered, self._faulty = 0, 0  # checks in a row
        self._fault: str | None = None
        self.waits_for: str | None = f"{part.name}: not started yet"

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass  # how `stop` may end it
        except BaseException:  # also SystemExit, which would end this thread in silence
            logger.critical("%s failed.", self.name, exc_info=True)
        finally:
            self._ending("its thread has ended")

    def stop(self) -> None:
        """Ask the part to end, or not to begin."""
        self._is_stopped = True
        self._call(self._part.stop)

    def ask(self) -> None:
        """Check the part once more; it answers when its event loop comes to it."""
        self._unanswered += 1
        self._call(self._answer)

    def fault(self) -> str | None:
        """What is wrong with the part or its event loop by the last check; None where nothing is."""
        return f"the event loop of {self.name} is blocked" if self._is_blocked else self._fault

    @property
    def has_failed(self) -> bool:
        """Whether its fault has lasted for too long."""
        return self._is_blocked or self._faulty >= FAULTY_CHECKS

    @property
    def _is_blocked(self) -> bool:
        return self._unanswered > UNANSWERED_CHECKS

    def log_tasks(self) -> None:
        """Write the stacks of its tasks to standard error."""
        for task in asyncio.all_tasks(self._loop) if self._loop else ():
            print(f"\n{task!r}\n{''.join(traceback.format_list(_stack_of(task)))}", file=sys.stderr)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            if self._is_stopped:  # before there was a loop in which to ask the part
                return
            await self._part.run(self._ending)
        finally:
            self._ending("it has ended")  # before asyncio.run waits for what is left

    def _ending(self, reason: str) -> None:
        self._report(f"{self.name} does not work any more: {reason}")

    def _answer(self) -> None:
        self._fault, self.waits_for = self._part.fault(), self._part.waits_for()
        self._faulty = self._faulty + 1 if self._fault else 0
        self._unanswered = 0

    def _call(self, function: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the end of the part has been reported
                self._loop.call_soon_threadsafe(function)


def ended(task: asyncio.Task[Any]) -> str:
    """The reason to give when a task that a part needs is done."""
    error = None if task.cancelled() else task.exception()
    return f"its task {task.get_name()!r} has ended" + (f" with {error!r}" if error else "")


def _end_unless_called_within(seconds: float) -> None:
    """A dead man's switch: a thread that runs no Python logs all stacks and exits the process with code 1."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def exit_process(code: int) -> NoReturn:
    """End the process, whatever its threads do. An interpreter that exits the usual way waits for some of them."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _log_stacks(runners: Sequence[_Runner]) -> None:
    names = " and ".join(runner.name for runner in runners)
    logger.critical(
        "%s did not end within %.0f s. All stack traces follow, then the process exits.", names, DEADLINE_SECONDS
    )
    faulthandler.dump_traceback(all_threads=True)
    for runner in runners:
        try:
            runner.log_tasks()
        except RuntimeError as error:  # its thread changes them meanwhile
            logger.warning("The tasks of %s cannot be read: %s.", runner.name, error)


def _stack_of(task: asyncio.Task[Any]) -> traceback.StackSummary:
    """Where the task waits: every coroutine down to the innermost. Task.get_stack gives the outermost only."""
    frames: list[tuple[Any, int]] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = next((f for kind in _FRAMES if (f := getattr(waiting, kind, None))), None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        waiting = next((w for kind in _AWAITED if (w := getattr(waiting, kind, None))), None)
    return traceback.StackSummary.extract(iter(frames))
