"""Whatever befalls a watch, the operator afterwards does its work in the same process, and has missed nothing.

The proxy breaks the watches. `make test` tries each fault on one watch, and on each watch a fault that ends all of
them. `make test-soak` tries each fault on each watch, also the faults that take minutes, and then all of them again and
again while both cores are busy.
"""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from threading import Event

import pytest

from finetune_api import names
from tests.integration.api_proxy import ApiProxy
from tests.integration.faults import STALLS, Fault
from tests.integration.finetune_operator.kubelet import Kubelet
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import PREFLIGHT, Job, manifest
from tests.integration.kube import BATCH_JOBS, PODS, PROFILES, Kube
from tests.integration.waiting import wait_for

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WATCHES = {
    "FineTuneJobs": f"/apis/{names.API_VERSION}/{names.JOBS}",
    "Jobs": "/apis/batch/v1/jobs",
    "Pods": "/api/v1/pods",
    "profiles": f"/apis/{names.API_VERSION}/{names.PROFILES}",
    "ServiceAccounts": "/api/v1/serviceaccounts",
    "RoleBindings": "/apis/rbac.authorization.k8s.io/v1/rolebindings",
    "definitions": DEFINITIONS,
}
BRIEF = [fault for fault in Fault if fault not in STALLS]
PAIRS = list(itertools.product(WATCHES, Fault))
TRIED_ALWAYS = {*zip(itertools.cycle(WATCHES), BRIEF), *((watch, Fault.TORN) for watch in WATCHES)}
RESTARTS = "finetune_operator_watch_restarts_total"
STALL_SECONDS = 70 + 50
"""kopf gives a silent watch up after 70 s."""


def works(job: Job, operator: OperatorProcess, kubelet: Kubelet, timeout: float = 60) -> None:
    """The job, created after the fault, comes to its end, and the process has never ended."""

    def is_decided() -> bool:
        kubelet.advance(job.namespace)
        return job.is_complete() or not operator.is_running

    wait_for("the job to be complete", is_decided, timeout=timeout)
    assert operator.is_running, operator.exit_code


def stir(job: Job, watch: str) -> None:
    """Change an object of each watch, so that its stream has something to say."""
    paths = {
        "FineTuneJobs": [job.path],
        "Jobs": [f"{BATCH_JOBS.format(job.namespace)}/{job.child(PREFLIGHT)}"],
        "Pods": [f"{PODS.format(job.namespace)}/{pod['metadata']['name']}" for pod in job.pods()],
        "profiles": [f"{PROFILES}/default"],
        "ServiceAccounts": [_shared(job, "/api/v1", "serviceaccounts")],
        "RoleBindings": [_shared(job, "/apis/rbac.authorization.k8s.io/v1", "rolebindings")],
        "definitions": [f"{DEFINITIONS}/{names.PROFILES}.{names.GROUP}"],
    }
    for path in paths[watch]:
        job.kube.merge(path, {"metadata": {"annotations": {"stirred": str(time.monotonic())}}})


def _shared(job: Job, group: str, resource: str) -> str:
    """Path of an object that all jobs of the namespace share."""
    return f"{group}/namespaces/{job.namespace}/{resource}/{names.TRAINER_SERVICE_ACCOUNT}"


def break_watch(watch: str, fault: Fault, job: Job, proxy: ApiProxy) -> None:
    """The watch meets the fault at least once."""
    path = WATCHES[watch]

    def meets_it() -> int:
        stir(job, watch)
        return proxy.broken[path]

    proxy.break_watches({path: fault})
    wait_for(f"the watch of {watch} to be {fault}", meets_it)
    proxy.mend()


def start_anew(job: Job, operator: OperatorProcess, restarts: float) -> None:
    """The watches have been started more often than `restarts` times, because that of FineTuneJobs has failed."""

    def count() -> float:
        stir(job, "FineTuneJobs")
        return operator.metric(RESTARTS)

    wait_for("the watches to start anew", count, lambda count: count > restarts)


@pytest.fixture
def waiting(kube: Kube, namespace: str, operator: OperatorProcess, kubelet: Kubelet) -> Job:
    """A job with an object for every watch."""
    operator.wait_until_ready()
    if operator.metric(RESTARTS):  # the pause before a restart grows with each restart
        operator.stop()
        operator.start()
        operator.wait_until_ready()
    job = Job.create(kube, namespace, manifest("before"))
    kubelet.pod_of(namespace, job.child(PREFLIGHT))
    return job


@pytest.mark.thorough_for("RoleBindings-*", "ServiceAccounts-*", "definitions-*", "profiles-*", "Pods-*")
@pytest.mark.parametrize(
    ("watch", "fault"), [pytest.param(*pair, marks=() if pair in TRIED_ALWAYS else pytest.mark.soak) for pair in PAIRS]
)
def test_after_a_broken_watch_the_operator_works(
    watch: str, fault: Fault, kube: Kube, waiting: Job, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    break_watch(watch, fault, waiting, proxy)
    after = Job.create(kube, waiting.namespace, manifest("after"))
    works(after, operator, kubelet, STALL_SECONDS if fault in STALLS else 60)


def test_after_refused_connections_the_operator_works(
    kube: Kube, waiting: Job, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    log = operator.log.read_text()
    proxy.refuse_connections()
    wait_for("the operator to be refused", lambda: "ConnectionRefusedError" in operator.log.read_text()[len(log) :])
    proxy.mend()
    works(Job.create(kube, waiting.namespace, manifest("after")), operator, kubelet)


def test_kopf_waiting_for_a_watcher_that_logs_in_again_is_not_waited_for(
    kube: Kube, waiting: Job, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    """docs/upstream/kopf-watch-cancel.md: one watch fails while others are between two tries."""
    failing = [WATCHES["Jobs"], WATCHES["Pods"]]
    jobs = WATCHES["FineTuneJobs"]
    proxy.break_watches(dict.fromkeys(failing, Fault.FAILED))
    wait_for(
        "the others to be tried again", lambda: min(proxy.broken[path] for path in failing), lambda count: count > 1
    )
    restarts = operator.metric(RESTARTS)
    proxy.break_watches({jobs: Fault.TORN, **dict.fromkeys(failing, Fault.FAILED)})

    start_anew(waiting, operator, restarts)
    proxy.mend()
    works(waiting, operator, kubelet)


@pytest.mark.parametrize("fault", [Fault.UNAUTHORIZED, Fault.TORN])
def test_watches_that_failed_are_started_again_in_the_same_process(
    fault: Fault, kube: Kube, waiting: Job, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    restarts = operator.metric(RESTARTS)
    proxy.break_watches({WATCHES["FineTuneJobs"]: fault})
    start_anew(waiting, operator, restarts)
    proxy.mend()
    operator.wait_until_ready()
    works(waiting, operator, kubelet)


@pytest.mark.thorough
def test_what_was_deleted_while_a_watch_was_broken_is_noticed(
    kube: Kube, waiting: Job, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    path = WATCHES["Jobs"]
    before = waiting.child(PREFLIGHT)
    uid = kube.get(f"{BATCH_JOBS.format(waiting.namespace)}/{before}")["metadata"]["uid"]
    proxy.break_watches({path: Fault.FAILED})
    wait_for("the watch to fail", lambda: proxy.broken[path])
    kube.delete(f"{BATCH_JOBS.format(waiting.namespace)}/{before}", propagationPolicy="Background")
    proxy.mend()

    def made_again() -> bool:
        return any(found["metadata"]["uid"] != uid for found in waiting.batch_jobs().values())

    wait_for("the preflight to be made again", made_again, timeout=90)


@pytest.mark.parametrize("watches", [("FineTuneJobs",), tuple(WATCHES)], ids=["one", "all"])
def test_a_signal_ends_the_operator_while_watches_are_broken(
    watches: tuple[str, ...], waiting: Job, operator: OperatorProcess, proxy: ApiProxy
) -> None:
    paths = [WATCHES[watch] for watch in watches]
    proxy.break_watches(dict.fromkeys(paths, Fault.FAILED))
    wait_for("the watches to fail", lambda: all(proxy.broken[path] for path in paths))
    assert operator.stop() in (0, 128 + signal.SIGTERM)


def test_a_signal_ends_the_operator_while_nobody_listens(
    waiting: Job, operator: OperatorProcess, proxy: ApiProxy
) -> None:
    proxy.refuse_connections()
    assert operator.stop() in (0, 128 + signal.SIGTERM)


def test_a_signal_ends_the_operator_while_it_starts(operator: OperatorProcess, proxy: ApiProxy) -> None:
    operator.stop()
    proxy.refuse_connections()
    operator.start()
    wait_for("the process to run", lambda: operator.probe("/healthz"), lambda answer: answer == (200, "ok"))
    assert operator.stop() in (0, 128 + signal.SIGTERM)


def test_a_signal_ends_the_operator_while_a_request_of_a_worker_is_not_answered(
    waiting: Job, operator: OperatorProcess, proxy: ApiProxy
) -> None:
    is_asked, answers = Event(), Event()

    def stall() -> None:
        is_asked.set()
        answers.wait()

    proxy.hold(lambda call: call.makes("configmaps"), stall)
    Job.create(waiting.kube, waiting.namespace, manifest("stalled"))
    wait_for("a worker to ask", is_asked.is_set)
    try:
        assert operator.stop() == 128 + signal.SIGTERM
    finally:
        answers.set()


def test_the_probes_tell_an_operator_that_does_not_watch_yet_from_one_that_works(
    operator: OperatorProcess, proxy: ApiProxy
) -> None:
    operator.stop()
    proxy.is_cut = True
    operator.start()
    wait_for("the probes", lambda: operator.probe("/healthz"), lambda answer: answer == (200, "ok"))
    status, text = operator.probe("/readyz")
    assert status == 503, text
    proxy.mend()
    operator.wait_until_ready()


@pytest.fixture
def busy() -> Iterator[None]:
    """Every core has other work."""
    workers = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 2)]
    for worker in workers:
        worker.start()
    yield
    for worker in workers:
        worker.kill()


def _spin() -> None:
    while True:
        pass


ROUNDS = 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("turn", range(ROUNDS))
def test_on_a_busy_machine_too(
    turn: int, busy: None, kube: Kube, waiting: Job, operator: OperatorProcess, kubelet: Kubelet, proxy: ApiProxy
) -> None:
    """In each turn every watch meets another fault; in all turns every watch has met each but the stalls."""
    faults = itertools.islice(itertools.cycle(BRIEF), turn, None)
    for watch, fault in zip(WATCHES, faults, strict=False):
        break_watch(watch, fault, waiting, proxy)
        after = Job.create(kube, waiting.namespace, manifest(f"after-{watch.lower()}"))
        works(after, operator, kubelet, timeout=120)
