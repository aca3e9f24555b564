"""Watches FineTuneJobs and their Jobs and Pods with kopf, and adds the key of each event's job to the workers' queue.

This is the only module that uses kopf. Its handlers decide nothing; kopf opens the watch streams and authenticates.
No finalizers and no annotations are written on users' objects: `on.event` handlers store no state on objects.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kopf

from finetune_api import names
from finetune_operator.cluster.api import TIMEOUT_SECONDS
from finetune_operator.observed.world import Key
from finetune_operator.process import loop
from finetune_operator.process.supervise import ended

WATCHED = (f"{names.JOBS}.{names.VERSION}.{names.GROUP}", "jobs.v1.batch", "pods.v1")
"""The resources, as kopf names them in the task of each watch."""
_LOGIN_TASK = "credentials retriever"
_FIRST_PAUSES, _LONGEST_PAUSE = (1, 1, 2, 3, 5, 8, 13, 21), 30
"""Seconds before each retry of a request of kopf. The first are kopf's default."""


class Watches:
    """The watch streams. `enqueue` receives the key of each FineTuneJob that may need work, in this part's thread.

    kopf watches each of `namespaces` separately; if there are none, it watches the whole cluster."""

    name = "kopf"

    def __init__(self, enqueue: Callable[[Key], None], namespaces: Collection[str] = ()) -> None:
        self._enqueue, self._namespaces = enqueue, namespaces
        self._watches = _watch_tasks(namespaces)
        self._stopped = asyncio.Event()
        self._tasks: Collection[asyncio.Task[Any]] = ()
        self._seen: set[str] = set()

    async def run(self, ending: Callable[[str], None]) -> None:
        """Watch until `stop`. kopf treats every task that is later created in this event loop as its own."""
        before = asyncio.all_tasks()
        self._tasks = await kopf.spawn_tasks(
            registry=_registry(self._enqueue),
            settings=_settings(self._namespaces),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            standalone=True,
            stop_flag=self._stopped,
        )
        for task in self._tasks:  # when one task ends, kopf ends all others, or hangs while it tries
            task.add_done_callback(lambda task: ending(ended(task)))
        await kopf.run_tasks(self._tasks, ignored=before)

    def stop(self) -> None:
        self._stopped.set()

    def fault(self) -> str | None:
        """Report a watch that has ended, because kopf does not restart it, or that kopf will never start.

        A silent stream is no fault: kopf reconnects after a while."""
        now = self._now()
        self._seen |= now
        if lost := self._seen - now:
            return f"kopf's task {min(lost)!r} has ended"
        if self._namespaces and now & self._watches.keys() and (missing := self._missing(now)):
            # kopf starts the watches of all namespaces together, so the first one stands for all.
            return f"the API server did not serve {missing[0]} when the operator started"
        return None

    def waits_for(self) -> str | None:
        missing = self._missing(self._now())
        return f"The watch of {', '.join(missing)} has not started yet." if missing else None

    def _missing(self, now: set[str]) -> list[str]:
        return [watched for task, watched in self._watches.items() if task not in now]

    def _now(self) -> set[str]:
        """Return the names of the required tasks that are alive.

        A task that is being cancelled does not count, because kopf may wait for it without limit."""
        needed = {_LOGIN_TASK, *self._watches}
        return {name for task in asyncio.all_tasks() if (name := task.get_name()) in needed and not task.cancelling()}


def _watch_tasks(namespaces: Collection[str]) -> dict[str, str]:
    """Return what each watch watches, by the name that kopf gives to its task."""
    if not namespaces:
        return {f"watcher for {resource}@None": resource for resource in WATCHED}
    return {
        f"watcher for {resource}@{namespace}": f"{resource} in {namespace}"
        for namespace in namespaces
        for resource in WATCHED
    }


class _Pauses:
    """Pauses without an end. kopf iterates over them anew for each request."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(_FIRST_PAUSES, itertools.repeat(_LONGEST_PAUSE))


def _settings(namespaces: Collection[str]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    if namespaces:
        # kopf would watch all namespaces and custom resource definitions of the cluster, which the Roles do not permit.
        settings.scanning.disabled = True
        # The operator's Role is deleted together with its namespace. kopf would end all watches after some refusals,
        # and the other namespaces would stand still.
        settings.networking.error_backoffs = _Pauses()
    settings.watching.label_selectors["batch/v1", "jobs"] = names.LABEL_JOB_UID
    settings.watching.label_selectors["v1", "pods"] = names.LABEL_JOB_UID
    settings.networking.request_timeout = TIMEOUT_SECONDS  # of a list; a watch is given up after 70 s of silence
    settings.process.ultimate_exiting_timeout = None  # the supervisor ends the process, and sooner
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").addFilter(_is_no_word_on_signals)
    return settings


def _is_no_word_on_signals(record: logging.LogRecord) -> bool:
    """Drop kopf's warning that it handles no signals outside the main thread. The supervisor handles them."""
    return not str(record.msg).startswith("OS signals are ignored")


def _registry(enqueue: Callable[[Key], None]) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    # A failed login ends the process. Otherwise kopf would retry every minute and watch nothing meanwhile.
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
