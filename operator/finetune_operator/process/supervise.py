"""Supervisor: runs the parts of the operator and makes sure that the process either works or ends.

Each part runs in its own thread with its own event loop. The main thread only supervises, so it always notices a
signal, a part that has ended, or a blocked event loop. After any of these events the parts have a deadline to end.
After the deadline, the stack traces of all threads and tasks are logged and the process exits.
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
"""Deadline for the parts to end. The pod's terminationGracePeriodSeconds must be longer."""
LAST_RESORT_SECONDS = 2.0
"""Time after the deadline at which the process ends even if the main thread hangs."""
CHECK_SECONDS = 1.0
FAULTY_CHECKS = 5
"""Number of consecutive checks with a fault after which the process ends."""
UNANSWERED_CHECKS = 30
"""Number of consecutive unanswered checks after which an event loop counts as blocked."""
DEAD_SECONDS = 60.0
"""Time without a check after which the process ends, for example because an extension holds the GIL."""
FAILED = 1
"""Exit code if a part has failed. After a signal: 0, or 128 plus the signal's number if the deadline passed."""

_FRAMES, _AWAITED = ("cr_frame", "gi_frame", "ag_frame"), ("cr_await", "gi_yieldfrom", "ag_await")

logger = logging.getLogger(__name__)


class Part(Protocol):
    """A part of the operator. All its methods are called in the event loop of its thread."""

    name: str

    async def run(self, ending: Callable[[str], None]) -> None:
        """Work until `stop` is called.

        Call `ending` with the cause as soon as the part stops working, even if `run` then needs time to return."""

    def stop(self) -> None:
        """Ask `run` to return."""

    def fault(self) -> str | None:
        """Return the permanent fault of the part as a sentence; None while the part works."""

    def waits_for(self) -> str | None:
        """Return what the part waits for before it can start to work, as a sentence; None once it works."""


class Supervisor:
    """Runs `parts` until a signal arrives or a part fails. Use it from the main thread."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._troubles: queue.SimpleQueue[signal.Signals | str] = queue.SimpleQueue()
        self._runners = [_Runner(part, self._troubles.put) for part in parts]
        self._ends = False

    def run(self) -> int:
        """Supervise until the end. Return the exit code. Parts that did not end in time are still running then."""
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
        """Return why the process must be restarted, as a sentence; None while it works. Callable from any thread."""
        if self._ends:
            return "The operator is stopping."
        return next((fault for runner in self._runners if (fault := runner.fault())), None)

    def readiness(self) -> str | None:
        """Return why the operator is not ready, as a sentence; None while it works. Callable from any thread."""
        return self.health() or next((why for runner in self._runners if (why := runner.waits_for)), None)

    def _first_trouble(self) -> signal.Signals | str:
        """Wait for and return the first signal, end of a part, or lasting fault."""
        while True:
            _end_unless_called_within(DEAD_SECONDS)
            with contextlib.suppress(queue.Empty):
                return self._troubles.get(timeout=CHECK_SECONDS)
            for runner in self._runners:
                runner.ask()
                if runner.has_failed and (fault := runner.fault()):
                    return fault

    def _stop_all(self) -> "list[_Runner]":
        """Ask every part to end. Return the parts that have not ended at the deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        for runner in self._runners:
            runner.stop()
        for runner in self._runners:
            runner.thread.join(max(0.0, deadline - time.monotonic()))
        return [runner for runner in self._runners if runner.thread.is_alive()]


class _Runner:
    """One part in its thread. `report` receives a sentence when the part stops working."""

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
        """Ask the part to end or, before its start, not to start."""
        self._is_stopped = True
        self._call(self._part.stop)

    def ask(self) -> None:
        """Start one check of the part. The event loop of the part answers it later."""
        self._unanswered += 1
        self._call(self._answer)

    def fault(self) -> str | None:
        """Return the fault of the part or its event loop at the last check; None if there is none."""
        return f"the event loop of {self.name} is blocked" if self._is_blocked else self._fault

    @property
    def has_failed(self) -> bool:
        """Whether the fault has lasted too long."""
        return self._is_blocked or self._faulty >= FAULTY_CHECKS

    @property
    def _is_blocked(self) -> bool:
        return self._unanswered > UNANSWERED_CHECKS

    def log_tasks(self) -> None:
        """Write the stack traces of the part's tasks to standard error."""
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
    """Return the cause to report when a required task of a part has ended."""
    error = None if task.cancelled() else task.exception()
    return f"its task {task.get_name()!r} has ended" + (f" with {error!r}" if error else "")


def _end_unless_called_within(seconds: float) -> None:
    """Exit with code 1 and log all stacks, unless called again in time. The timer runs no Python code."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def exit_process(code: int) -> NoReturn:
    """End the process at once. A normal exit of the interpreter would wait for some threads."""
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
    """Return where the task waits: all coroutines down to the innermost. Task.get_stack returns only the outermost."""
    frames: list[tuple[Any, int]] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = next((f for kind in _FRAMES if (f := getattr(waiting, kind, None))), None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        waiting = next((w for kind in _AWAITED if (w := getattr(waiting, kind, None))), None)
    return traceback.StackSummary.extract(iter(frames))
