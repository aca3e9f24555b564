"""Watches FineTuneJobs, their children and profiles with kopf, and feeds the store with each event.

This is the only module that uses kopf. Its handlers decide nothing; kopf opens the watch streams and authenticates.
No finalizers and no annotations are written on users' objects: `on.event` handlers store no state on objects.

A run of kopf can hang at its end, so each has a thread and an event loop of its own.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kopf

from finetune_api import names
from finetune_operator.cluster.api import CHUNK, TIMEOUT_SECONDS, selectors
from finetune_operator.observed.facts.pods import Object
from finetune_operator.process import metrics
from finetune_operator.process.supervise import ended
from finetune_operator.store.store import ACCOUNT, BINDING, CLUSTER_SCOPED, JOB, KINDS, POD, PROFILE, RUN, Store

WATCHED = {
    JOB: (names.GROUP, names.VERSION, names.JOBS),
    RUN: ("batch", "v1", "jobs"),
    POD: ("", "v1", "pods"),
    PROFILE: (names.GROUP, names.VERSION, names.PROFILES),
    ACCOUNT: ("", "v1", "serviceaccounts"),
    BINDING: ("rbac.authorization.k8s.io", "v1", "rolebindings"),
}
"""Group, version and plural by kind."""
LOGIN_TASK = "credentials retriever"
PAUSES_SECONDS = (0.5, 1, 2, 5, 10, 30)
"""Pauses before the next runs of kopf, and before it asks again after a refusal."""
HANG_SECONDS = 1.0
"""How long kopf may take to end after one of its watches has failed. Then its thread is left behind."""
SERVED_SECONDS = 10.0
"""How long kopf may take from its first watch to its last. Without its own scan of the cluster, which a release with
namespaces may not make, it does not look again for a kind that the API server did not serve at the start."""
SILENT_SECONDS = 30.0
"""How long the event loop of kopf may be blocked."""

logger = logging.getLogger(__name__)


class KopfRun:
    """One run of kopf, in its own thread with its own event loop."""

    def __init__(self, store: Store, namespaces: tuple[str, ...], listed: Callable[[], None] = lambda: None) -> None:
        self._store, self._namespaces, self._listed = store, namespaces, listed
        self._loop = asyncio.new_event_loop()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._main, name="kopf", daemon=True)
        self._ending: tuple[str, float] | None = None
        """Why the run is ending, and since when."""
        self._born = self._beat = time.monotonic()
        self._alive: set[str] = set()
        """Names of kopf's tasks that have been seen alive."""
        self.missing: Collection[str] = sorted(KINDS)
        """Kinds whose watch does not run."""

    def start(self) -> None:
        self._thread.start()

    def stop(self, reason: str) -> None:
        """Ask kopf to end."""
        self._end(reason)

    def outcome(self) -> str | None:
        """Return why the run has ended, or must be left behind; None while it works."""
        now = time.monotonic()
        if not self._thread.is_alive():
            return self._ending[0] if self._ending else "kopf has ended"
        if now - self._beat > SILENT_SECONDS:
            self._end(f"its event loop has been blocked for {SILENT_SECONDS:.0f} s")
        if self._ending and now - self._ending[1] > HANG_SECONDS:
            logger.warning("kopf did not end within %.0f s. Its thread is left behind.", HANG_SECONDS)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._loop.stop)
            return self._ending[0]
        return None

    def _end(self, reason: str) -> None:
        if self._ending is None:
            self._ending = (reason, time.monotonic())
        self.missing = sorted(KINDS)
        self._stopped.set()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._watch())
        except BaseException as error:  # also that the loop was stopped before its end
            logger.debug("kopf has ended with an error", exc_info=True)
            self._end(f"kopf failed: {error!r}")
        finally:
            # Tasks that hang are not waited for. Python would log each of them as destroyed though pending.
            self._loop.set_exception_handler(lambda loop, context: None)
            self._loop.close()

    async def _watch(self) -> None:
        before = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=_registry(self._feed),
            settings=_settings(self._namespaces),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            memo=_NoMemo(),
            standalone=True,
            stop_flag=self._stopped,
        )
        for task in tasks:  # when one task ends, kopf ends all others, or hangs while it tries
            task.add_done_callback(lambda task: self._end(ended(task)))
        pulse = asyncio.create_task(self._pulse())
        try:
            await kopf.run_tasks(tasks, ignored={*before, pulse})
        finally:
            pulse.cancel()

    async def _pulse(self) -> None:
        """Note that the event loop runs, and look at kopf's tasks."""
        while True:
            self._beat = time.monotonic()
            # A task that is being cancelled does not count, because kopf may wait for it without limit.
            self.look({task.get_name() for task in asyncio.all_tasks() if not task.cancelling()})
            await asyncio.sleep(0.2)

    def _feed(self, kind: str, type: str | None, raw: Object) -> None:
        """Feed the store with one event. `type` is None for an object of a list."""
        if self._ending is not None:
            return  # a run that was left behind may still deliver old news
        metrics.EVENTS.labels(kind).inc()
        metrics.LAST_EVENT.labels(kind).set_to_current_time()
        if type is None:
            self._listed()
        if type == "DELETED":
            self._store.remove(kind, raw["metadata"]["uid"])
        else:
            self._store.put(kind, raw)

    def look(self, tasks: set[str]) -> None:
        """Note which watches are missing from `tasks`, the names of the tasks that are alive.

        The run ends if a watch has ended, or if kopf will never start it."""
        watchers = watch_tasks(self._namespaces)
        alive = tasks & {LOGIN_TASK, *itertools.chain(*watchers.values())}
        if lost := self._alive - alive:
            self._end(f"kopf's task {min(lost)!r} has ended")
        self._alive |= alive
        if self._ending is None:
            self.missing = [kind for kind, names_of_kind in watchers.items() if not names_of_kind <= alive]
            late = time.monotonic() - self._born > SERVED_SECONDS
            if self._namespaces and self.missing and len(alive) > 1 and late:
                self._end(f"the API server did not serve {', '.join(self.missing)} when they started")


def watch_tasks(namespaces: tuple[str, ...]) -> dict[str, set[str]]:
    """Return the names of kopf's watchers, by kind."""
    found = {}
    for kind, (group, version, plural) in WATCHED.items():
        resource = f"{plural}.{version}.{group}".rstrip(".")
        scopes = namespaces if namespaces and kind not in CLUSTER_SCOPED else ("None",)
        found[kind] = {f"watcher for {resource}@{scope}" for scope in scopes}
    return found


class _Pauses:
    """Pauses without an end. kopf iterates over them anew for each request."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(PAUSES_SECONDS, itertools.repeat(PAUSES_SECONDS[-1]))


def _settings(namespaces: tuple[str, ...]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    if namespaces:
        # kopf would watch all namespaces and custom resource definitions of the cluster, which the Roles do not permit.
        settings.scanning.disabled = True
        # The operator's Role is deleted together with its namespace. kopf would end all watches after some refusals,
        # and the other namespaces would stand still.
        settings.networking.error_backoffs = _Pauses()
    settings.queueing.exit_timeout = 0.1  # nothing is lost: the next run lists everything anew
    # Each object of a list has a task of kopf, which holds the object's JSON for this time after its event.
    settings.queueing.idle_timeout = 0.01
    settings.watching.chunk_size = CHUNK
    settings.persistence.diffbase_storage = _NoDiffs()
    for kind, (group, version, plural) in WATCHED.items():
        labels, fields = selectors(kind)
        api = f"{group}/{version}".lstrip("/")
        if labels:
            settings.watching.label_selectors[api, plural] = labels
        if fields:
            settings.watching.field_selectors[api, plural] = fields
    settings.networking.request_timeout = TIMEOUT_SECONDS  # of a list; a watch is given up after 70 s of silence
    settings.process.ultimate_exiting_timeout = None  # the supervisor ends the process, and sooner
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").addFilter(_is_no_word_on_signals)
    return settings


class _NoMemo:
    """Stands for what handlers would remember about an object. kopf keeps a copy for each object."""

    def __copy__(self) -> "_NoMemo":
        return self


class _NoDiffs(kopf.DiffBaseStorage):
    """Keeps no essence of objects, which kopf would otherwise copy for every event, for handlers that nobody has."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> Any:
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        pass


def _is_no_word_on_signals(record: logging.LogRecord) -> bool:
    """Drop kopf's warning that it handles no signals outside the main thread. The supervisor handles them."""
    return not str(record.msg).startswith("OS signals are ignored")


def _registry(feed: Callable[[str, str | None, Object], None]) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    # A failed login ends the run. Otherwise kopf would retry every minute and watch nothing meanwhile.
    @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**arguments)

    def watch(kind: str) -> None:
        async def on_event(type: str | None, event: Any, **_: Any) -> None:
            feed(kind, type, event["object"])

        kopf.on.event(*WATCHED[kind], registry=registry)(on_event)

    for kind in KINDS:
        watch(kind)
    return registry
