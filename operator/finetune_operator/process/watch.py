"""kopf: watches FineTuneJobs and their Jobs and Pods, and turns every event into a key for the workers.

The only module that knows kopf. Its handlers decide nothing; kopf gives the watch streams and logs in.
No finalizers and no annotations are written on users' objects: `on.event` handlers keep no state there.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

import kopf

from finetune_api import names
from finetune_operator.cluster.api import TIMEOUT_SECONDS
from finetune_operator.observed.world import Key
from finetune_operator.process import loop
from finetune_operator.process.supervise import ended

WATCHED = (f"{names.JOBS}.{names.VERSION}.{names.GROUP}", "jobs.v1.batch", "pods.v1")
"""The resources, as kopf names them in the task of each watch."""
_WATCH_TASK = "watcher for {}@None"
_LOGIN_TASK = "credentials retriever"


class Watches:
    """The watch streams. `enqueue` takes the key of each FineTuneJob that may need work; it is called from the thread
    of this part."""

    name = "kopf"

    def __init__(self, enqueue: Callable[[Key], None]) -> None:
        self._enqueue = enqueue
        self._stopped = asyncio.Event()
        self._tasks: Collection[asyncio.Task[Any]] = ()
        self._seen: set[str] = set()

    async def run(self, ending: Callable[[str], None]) -> None:
        """Watch until `stop`. kopf takes every task that is created in this event loop from now on for its own."""
        before = asyncio.all_tasks()
        self._tasks = await kopf.spawn_tasks(
            registry=_registry(self._enqueue),
            settings=_settings(),
            clusterwide=True,
            standalone=True,
            stop_flag=self._stopped,
        )
        for task in self._tasks:  # when one is done, kopf ends all others, or hangs while it tries
            task.add_done_callback(lambda task: ending(ended(task)))
        await kopf.run_tasks(self._tasks, ignored=before)

    def stop(self) -> None:
        self._stopped.set()

    def fault(self) -> str | None:
        """A watch that was there and has ended: kopf restarts none. That a stream is silent is no fault, kopf connects
        anew after a while."""
        now = self._now()
        self._seen |= now
        lost = self._seen - now
        return f"kopf's task {min(lost)!r} has ended" if lost else None

    def waits_for(self) -> str | None:
        now = self._now()
        missing = [resource for resource in WATCHED if _WATCH_TASK.format(resource) not in now]
        return f"There is no watch yet of {', '.join(missing)}." if missing else None

    def _now(self) -> set[str]:
        """Names of the tasks that have to live and do. One that is being cancelled does not: kopf can wait for it for
        ever."""
        needed = {_LOGIN_TASK, *map(_WATCH_TASK.format, WATCHED)}
        return {name for task in asyncio.all_tasks() if (name := task.get_name()) in needed and not task.cancelling()}


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.watching.label_selectors["batch/v1", "jobs"] = names.LABEL_JOB_UID
    settings.watching.label_selectors["v1", "pods"] = names.LABEL_JOB_UID
    settings.networking.request_timeout = TIMEOUT_SECONDS  # of a list; a watch is given up after 70 s of silence
    settings.process.ultimate_exiting_timeout = None  # the supervisor ends the process, and sooner
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").addFilter(_is_no_word_on_signals)
    return settings


def _is_no_word_on_signals(record: logging.LogRecord) -> bool:
    """kopf warns that it does not handle signals outside of the main thread: the supervisor does."""
    return not str(record.msg).startswith("OS signals are ignored")


def _registry(enqueue: Callable[[Key], None]) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    # A login that fails ends the process. kopf would try again every minute and watch nothing meanwhile.
    @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**arguments)

    @kopf.on.event(names.GROUP, names.VERSION, names.JOBS, registry=registry)
    async def on_job(namespace: str | None, name: str | None, status: Any, **_: Any) -> None:
        if namespace and name and not loop.has_ended(status):
            enqueue((namespace, name))

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    @kopf.on.event("v1", "pods", registry=registry)
    async def on_child(namespace: str | None, labels: Any, **_: Any) -> None:
        if namespace and (owner := labels.get(names.LABEL_JOB_NAME)):
            enqueue((namespace, owner))

    return registry
