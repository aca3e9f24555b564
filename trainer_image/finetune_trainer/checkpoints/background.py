"""One piece of work at a time in a thread beside the training, with its processor time."""

from collections.abc import Callable
from threading import Event, Thread, current_thread
from time import thread_time

from finetune_trainer.pod.failure import Cancelled
from finetune_trainer.pod.liveness.heartbeat import beat

LAST_UPLOAD_SECONDS = 10.0
"""How long the end of an attempt waits for its last upload, and then for other results. If another rank has failed, the
launcher kills this one after `launcher.LAST_SECONDS`, which has to suffice for both and for the report."""


class Background:
    """Runs one piece of work at a time. The thread does not keep the process alive."""

    def __init__(self, name: str = "checkpoint") -> None:
        """`name`: that of the thread."""
        self._name = name
        self._thread: Thread | None = None
        self._cancelled, self._awaited = Event(), False
        self._cpu: dict[Thread, float] = {}
        """Processor time of the threads that do the present work, as each of them told last."""
        self.cpu_seconds = 0.0
        """Processor time of the work that has ended, in all its threads."""

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[Callable[[int], None]], None]) -> None:
        """Starts `work`. Its argument is a function that it calls again and again, from each of its threads: it raises
        Cancelled after `cancel`. Threads that the work starts must not outlive it.

        `work` handles its own errors. No other work may be under way."""
        assert not self.busy, "work is under way"

        def run() -> None:
            try:
                work(self._check)
            except Cancelled:
                pass
            finally:
                self._cpu[current_thread()] = thread_time()
                self.cpu_seconds += sum(self._cpu.values())
                self._cpu = {}

        self._thread = Thread(target=run, name=self._name, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Waits for the end of the work, at most so long. Returns whether no work is under way."""
        if self._thread is not None:
            self._awaited = True
            try:
                self._thread.join(seconds)
            finally:
                self._awaited = False
        return not self.busy

    def cancel(self, seconds: float) -> bool:
        """Ends the work, and waits for its end at most so long. No work can be started afterwards. Returns whether no
        work is under way."""
        self._cancelled.set()
        return self.wait(seconds)

    def _check(self, size: int) -> None:
        if self._awaited:
            beat()  # else it would hide that the training hangs
        self._cpu[current_thread()] = thread_time()
        if self._cancelled.is_set():
            raise Cancelled


STORAGE_SPEED = 50_000_000
"""Bytes per second that a storage takes from one pod where nothing is wrong. At the end of a pod, an upload
that failed or was slow before is begun again only if it could end in time at this speed."""
