"""The operator's metrics, in the names and units of Prometheus: https://prometheus.io/docs/practices/naming/

Labels have few values: verbs, codes, kinds, states and failure reasons. Only the cost has a label for the namespace."""

from collections.abc import Iterator
from decimal import Decimal
from urllib.parse import urlsplit

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_api.status.job import ConditionType, State
from finetune_operator.decisions.plan import Plan
from finetune_operator.observed.world import World
from finetune_operator.process.queue import WorkQueue
from finetune_operator.store.store import Store

PREFIX = "finetune_operator"
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter and histogram, which nobody reads

RECONCILE_SECONDS = Histogram(
    f"{PREFIX}_reconcile_duration_seconds",
    "Time to decide one FineTuneJob and to carry out the decision.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
RECONCILE_ERRORS = Counter(f"{PREFIX}_reconcile_errors_total", "Decisions that failed and were tried again.")
API_REQUESTS = Counter(
    f"{PREFIX}_api_requests_total", "Requests to the API server, the watches excepted.", ["verb", "code"]
)
DRIFT = Counter(
    f"{PREFIX}_store_repairs_total",
    "Differences between the store and the API server that a repair found.",
    ["kind", "cause"],
)
EVENTS = Counter(f"{PREFIX}_watch_events_total", "Events that the watches received.", ["kind"])
RESTARTS = Counter(f"{PREFIX}_watch_restarts_total", "Restarts of the watches after a failure.")
FAILED = Counter(f"{PREFIX}_jobs_failed_total", "FineTuneJobs that have failed.", ["reason"])
GPU_SECONDS = Counter(f"{PREFIX}_gpu_seconds_total", "Seconds for which ended pods have held a GPU.", ["namespace"])
GPU_COST = Counter(
    f"{PREFIX}_gpu_cost_total",
    "Cost of these seconds, in the currency of pricePerHour of the FineTuneProfile.",
    ["namespace"],
)
LAST_EVENT = Gauge(
    f"{PREFIX}_watch_last_event_timestamp_seconds", "When a watch last received an event, in Unix time.", ["kind"]
)


def count_request(verb: str, code: int) -> None:
    """Count a request to the API server. The code is 0 if there was no answer."""
    API_REQUESTS.labels(verb, code).inc()


def count_written(world: World, plan: Plan) -> None:
    """Count what a written status reports for the first time: the failure of a job, and the use of its pods."""
    status = plan.status
    if status is None:
        return
    before = world.raw_status
    if status["state"] == State.FAILED and before.get("state") != State.FAILED:
        ready = next(c for c in status["conditions"] if c["type"] == ConditionType.READY)
        FAILED.labels(ready["reason"]).inc()
    GPU_SECONDS.labels(world.namespace).inc(max(0, status.get("gpuSeconds", 0) - before.get("gpuSeconds", 0)))
    cost = Decimal(status.get("cost", "0")) - Decimal(before.get("cost", "0"))
    GPU_COST.labels(world.namespace).inc(max(0.0, float(cost)))


def observe(store: Store, queue: WorkQueue, registry: CollectorRegistry = REGISTRY) -> None:
    """Let the metrics read the store and the queue whenever they are scraped."""
    registry.register(_Stored(store, queue))


def serve(address: str) -> None:
    """Start to serve /metrics at `address`, HOST:PORT. Raises OSError if the address cannot be bound."""
    parts = urlsplit(f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError(f'"{address}" is not HOST:PORT: use for example 0.0.0.0:8081')
    start_http_server(parts.port, parts.hostname)


class _Stored(Collector):
    """What the store and the queue contain at the time of the scrape."""

    def __init__(self, store: Store, queue: WorkQueue) -> None:
        self._store, self._queue = store, queue

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            f"{PREFIX}_queue_depth", "FineTuneJobs that wait for a worker.", value=self._queue.depth()
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_queue_longest_wait_seconds",
            "For how long the first of them has waited.",
            value=self._queue.longest_wait().total_seconds(),
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_watch_unseen_write_seconds",
            "Age of the oldest write of the operator that no watch has shown yet.",
            value=self._store.longest_unseen(),
        )
        jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "FineTuneJobs in each state.", labels=["state"])
        states = self._store.states()
        for state in State:
            jobs.add_metric([state], states[state])
        yield jobs
        objects = GaugeMetricFamily(f"{PREFIX}_store_objects", "Objects in the store.", labels=["kind"])
        for kind, count in self._store.sizes().items():
            objects.add_metric([kind], count)
        yield objects
