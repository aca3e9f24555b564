"""A first failure to start a container is waited for, however long the steps before it took. No wait is for ever."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import FAILURES, FailureReason, Retry
from finetune_operator.cluster.events import pod_event
from finetune_operator.observed.causes.starting import (
    FETCH_LIMIT,
    IMAGE_GRACE,
    LOOK_AGAIN_STUCK,
    SLOW_LIMIT,
    START_LIMIT,
    needs_events,
    waiting,
)
from finetune_operator.observed.facts.pods import Companion, Object, Pod, PodEvent
from finetune_operator.observed.standing import RunStanding, Standing
from tests.unit.finetune_operator import worlds
from tests.unit.finetune_operator.worlds import NOW

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
EOF_ERROR = "failed to copy: httpReadSeeker: failed open: unexpected EOF"


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def pending(reason: str, message: str = "", **fields: Any) -> Pod:
    return worlds.pending(**{"waiting_reason": reason, "waiting_message": message, **fields})


class Cluster:
    """Events of one pod, as the API server has them. The same report is one Event, with a time of its own."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Object] = {}

    def events(self, namespace: str, fields: str) -> list[Object]:
        return list(self.items.values())

    def report(self, after: timedelta, reason: str, message: str) -> None:
        at = f"{NOW + after:%Y-%m-%dT%H:%M:%SZ}"
        type = "Warning" if reason.startswith(("Failed", "BackOff")) else "Normal"
        known = self.items.setdefault((reason, message), {"metadata": {"creationTimestamp": at}})
        self.items[reason, message] = {**known, "type": type, "reason": reason, "message": message, "lastTimestamp": at}

    def pulls(self, *pulls: tuple[float, float | None], error: str = EOF_ERROR) -> None:
        """Each pull: when it began, and when it failed; None if it still runs."""
        for begun, failed in pulls:
            self.report(seconds(begun), "Pulling", 'Pulling image "trainer:1"')
            if failed is not None:
                self.report(seconds(failed), "Failed", f'Failed to pull image "trainer:1": {error}')
                self.report(seconds(failed), "Failed", "Error: ErrImagePull")
                self.report(seconds(failed + 5), "BackOff", 'Back-off pulling image "trainer:1"')

    def seen(self, waits: Pod) -> Pod:
        return replace(waits, event=pod_event(self, "team", "u"))  # type: ignore[arg-type]


def judged(cluster: Cluster, waits: Pod, after: float) -> RunStanding:
    """What the operator finds so long after the pod was scheduled. It reads Events only where they can matter."""
    now = NOW + seconds(after)
    return waiting(cluster.seen(waits) if needs_events(waits, now) else waits, now)


def test_a_first_failure_after_a_long_pull_is_waited_for() -> None:
    """An image of several GB on a fresh node: the connection breaks after 90 s, and the kubelet pulls again."""
    cluster = Cluster()
    cluster.pulls((0, 90))
    failed = pending("ErrImagePull", EOF_ERROR)

    at_once = judged(cluster, failed, 90)
    assert (at_once.standing, at_once.requeue_after) == (Standing.WAITING, IMAGE_GRACE)
    cluster.pulls((100, None))
    long_pull = judged(cluster, failed, 300)
    assert (long_pull.standing, long_pull.requeue_after) == (Standing.WAITING, LOOK_AGAIN_STUCK)
    cluster.pulls((100, 310))
    assert judged(cluster, failed, 310).failure is FailureReason.REGISTRY_UNAVAILABLE


@pytest.mark.parametrize("cause", ["in the state", "in an Event alone"])
@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ("trainer:1: not found", FailureReason.IMAGE_PULL_FAILED),
        ("401 Unauthorized", FailureReason.IMAGE_PULL_FAILED),
        ("unexpected EOF", FailureReason.REGISTRY_UNAVAILABLE),
    ],
)
def test_a_pull_that_fails_again_and_again_ends_the_attempt_with_the_words_of_the_registry(
    error: str, failure: FailureReason, cause: str
) -> None:
    cluster = Cluster()
    cluster.pulls((0, 1), (11, 12), (32, 33), error=error)
    shown = f": ErrImagePull: {error}" if cause == "in the state" else ""
    failed = pending("ImagePullBackOff", f'Back-off pulling image "trainer:1"{shown}')

    assert judged(cluster, failed, 50).standing is Standing.WAITING
    late = judged(cluster, failed, 6 + IMAGE_GRACE.total_seconds())
    assert late.failure is failure
    assert late.message.startswith("Pod p cannot start: ImagePullBackOff: Back-off pulling image")
    assert late.message.endswith(f": {error}.")


def test_a_kubelet_that_always_pulls_and_fails_with_new_words_ends_with_its_own_back_off() -> None:
    """An error with another port each time is a new report each time. The pauses of the kubelet grow beyond the
    grace."""
    cluster = Cluster()
    for number, begun in enumerate((0, 11, 32, 73, 154)):
        cluster.pulls((begun, begun + 1), error=f"read tcp 10.0.0.1:{number}: connection reset by peer")
    failed = pending("ImagePullBackOff", "Back-off")

    assert judged(cluster, failed, 156 + IMAGE_GRACE.total_seconds()).standing is Standing.FAILED


@pytest.mark.parametrize("companions", [(), (Companion("fetch-model", comes_first=True, exit_code=0, finished=NOW),)])
def test_a_pull_that_never_ends_gives_the_gpu_back(companions: tuple[Companion, ...]) -> None:
    cluster, limit = Cluster(), FETCH_LIMIT if companions else SLOW_LIMIT
    cluster.pulls((0, 90), (100, None))
    failed = pending("ErrImagePull", EOF_ERROR, companions=companions)

    assert judged(cluster, failed, (limit - SECOND).total_seconds()).standing is Standing.WAITING
    assert judged(cluster, failed, limit.total_seconds()).failure is FailureReason.REGISTRY_UNAVAILABLE


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_an_image_that_the_kubelet_never_pulls_fails_at_once(reason: str) -> None:
    hopeless = pending(reason, "unexpected EOF")

    found = waiting(hopeless, NOW)

    assert (found.standing, found.failure) == (Standing.FAILED, FailureReason.IMAGE_PULL_FAILED)
    assert not needs_events(hopeless, NOW + HOUR)


@pytest.mark.parametrize("told", ["by its end", "by Events"])
def test_a_first_failure_after_a_long_fetch_or_pull_is_waited_for(told: str) -> None:
    """The model was fetched, or the image pulled, for an hour. Then the runtime fails once to create the trainer."""
    fetched = Companion("fetch-model", comes_first=True, exit_code=0, finished=NOW + HOUR)
    failed = pending("CreateContainerError", "odd", companions=(fetched,) if told == "by its end" else ())
    cluster = Cluster()
    if told == "by Events":
        cluster.report(HOUR, "Pulled", 'Successfully pulled image "trainer:1" in 1h0m0s.')
        for retry in (12, 24, 36, 48, 60):  # the kubelet reports the same at each try
            cluster.report(HOUR + seconds(retry), "Pulled", 'Container image "trainer:1" already present on machine')

    assert judged(cluster, failed, 3600 + 30).standing is Standing.WAITING
    assert judged(cluster, failed, 3600 + 12 + IMAGE_GRACE.total_seconds()).failure is FailureReason.POD_START_FAILED


def test_a_native_sidecar_that_crashes_after_hours_is_waited_for_as_long_as_one_that_crashes_at_once() -> None:
    crashes = Companion("proxy", comes_first=True, is_sidecar=True, waiting_reason="CrashLoopBackOff")
    failed = pending("PodInitializing", companions=(crashes,))
    cluster = Cluster()
    cluster.report(seconds(1), "Started", "Started container proxy")
    cluster.report(2 * HOUR, "BackOff", "Back-off restarting failed container proxy")

    assert judged(cluster, failed, 2 * 3600 + 1).standing is Standing.WAITING
    assert judged(cluster, failed, (2 * HOUR + START_LIMIT).total_seconds()).failure is FailureReason.POD_START_FAILED


CACHE = 'MountVolume.SetUp failed for volume "bundle": failed to sync configmap cache: timed out'


def starting() -> Pod:
    """The kubelet prepares the volumes or the network of the pod, or pulls its image."""
    return pending("ContainerCreating")


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("minutes", [5, 30, 300])
def test_a_first_warning_after_a_long_normal_start_is_waited_for(minutes: int, again: bool) -> None:
    """A large image is pulled. Then the node is restarted, and its volumes are not there at once. `again`: the same
    was reported in the first second."""
    begun, limit = 60 * minutes, START_LIMIT.total_seconds()
    cluster = Cluster()
    if again:
        cluster.report(SECOND, "FailedMount", CACHE)
    cluster.report(5 * SECOND, "Pulling", 'Pulling image "trainer:1"')
    cluster.report(seconds(begun), "FailedMount", CACHE)

    assert judged(cluster, starting(), begun).standing is Standing.WAITING
    assert judged(cluster, starting(), begun + limit - 1).standing is Standing.WAITING
    found = judged(cluster, starting(), begun + limit)
    assert (found.standing, found.failure) == (Standing.FAILED, FailureReason.POD_START_FAILED)


@pytest.mark.parametrize("begun", [2, 1800])
def test_a_start_that_fails_again_and_again_ends_by_its_first_warning(begun: int) -> None:
    """Each sandbox has another name. The kubelet tells between the failures that it will make another one."""
    limit = START_LIMIT.total_seconds()
    cluster = Cluster()
    if begun > 2:
        cluster.report(SECOND, "Pulling", 'Pulling image "trainer:1"')
    for number, after in enumerate(range(begun, begun + int(limit) + 1, 12)):
        cluster.report(seconds(after), "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
        cluster.report(seconds(after), "FailedCreatePodSandBox", f'network of sandbox "{number}": plugin failed')

    assert judged(cluster, starting(), begun + limit - 1).standing is Standing.WAITING
    assert judged(cluster, starting(), begun + limit).failure is FailureReason.NODE_FAULT


def test_a_warning_in_the_second_of_the_last_step_was_over_when_the_next_one_came() -> None:
    cluster = Cluster()
    cluster.report(SECOND, "FailedMount", "not registered")
    cluster.report(SECOND, "Pulling", 'Pulling image "trainer:1"')
    cluster.report(HOUR, "FailedMount", CACHE)

    assert judged(cluster, starting(), 3600 + 60).standing is Standing.WAITING


AWAY = [
    "failed to copy: httpReadSeeker: failed open: unexpected EOF",
    'failed to do request: Head "https://r.example/v2/": dial tcp 10.0.0.1:443: i/o timeout',
    "read tcp 10.0.0.1:5000: read: connection reset by peer",
    "dial tcp 10.0.0.1:443: connect: connection refused",
    "net/http: TLS handshake timeout",
    "unexpected status from HEAD request to https://r.example/v2/t/manifests/1: 503 Service Unavailable",
    "toomanyrequests: You have reached your pull rate limit",
    "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
]
REFUSED = [
    'failed to resolve reference "r.example/t:1": r.example/t:1: not found',
    "failed to fetch anonymous token: unexpected status: 401 Unauthorized",
    "pull access denied, repository does not exist or may require authorization",
    "dial tcp: lookup r.exmaple: no such host",
    "no match for platform in manifest: not found",
    "tls: failed to verify certificate: x509: certificate signed by unknown authority",
    "something that nobody has ever said",
]


@pytest.mark.parametrize("name", ["trainer", "fetch-model", "istio-init"])
@pytest.mark.parametrize("error", [*AWAY, *REFUSED, "failed to extract layer: write /x: no space left on device"])
def test_a_pull_is_tried_again_if_the_registry_or_the_node_was_at_fault(error: str, name: str) -> None:
    wait = {"waiting_reason": "ImagePullBackOff", "waiting_message": f"Back-off pulling image: ErrImagePull: {error}"}
    first = Companion(name, comes_first=True, **wait)
    failed = pending("PodInitializing", companions=(first,)) if name != "trainer" else pending(*wait.values())

    found = waiting(failed, NOW + IMAGE_GRACE)

    final = FailureReason.POD_START_FAILED if name == "istio-init" else FailureReason.IMAGE_PULL_FAILED
    again = FailureReason.REGISTRY_UNAVAILABLE if error in AWAY else FailureReason.NODE_FAULT
    assert found.failure is (final if error in REFUSED else again)
    assert error in found.message
    assert (FAILURES[found.failure].retry is Retry.NEVER) is (error in REFUSED)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("reason", ["CreateContainerError", "RunContainerError"])
@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ("nvidia-container-cli: initialization error: nvml error: driver not loaded", FailureReason.GPU_FAULT),
        ("failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=0", FailureReason.GPU_FAULT),
        ("failed to create shim task: context deadline exceeded", FailureReason.NODE_FAULT),
        ('exec: "python": executable file not found in $PATH', FailureReason.POD_START_FAILED),
        ("no command specified", FailureReason.POD_START_FAILED),
    ],
)
def test_a_runtime_that_cannot_create_a_container_is_told_apart_from_a_wrong_command(
    error: str, failure: FailureReason, reason: str, trains: bool
) -> None:
    found = waiting(pending(reason, error, trains=trains), NOW + IMAGE_GRACE)

    without_gpu = FailureReason.NODE_FAULT if failure is FailureReason.GPU_FAULT else failure
    assert found.failure is (failure if trains else without_gpu)


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({}, True),
        ({"waiting_reason": "CrashLoopBackOff"}, False),
        ({"started": NOW}, False),
        ({"due": NOW}, False),
        ({"companions": (Companion("c", comes_first=True, exit_code=0, finished=NOW + SECOND),)}, False),
    ],
)
def test_the_events_of_a_pod_that_fails_are_read_only_where_they_can_delay_its_end(
    fields: dict[str, Any], needed: bool
) -> None:
    failed = pending("ErrImagePull", **fields) if "waiting_reason" not in fields else pending("CrashLoopBackOff")

    assert not needs_events(failed, NOW + IMAGE_GRACE - SECOND)
    assert needs_events(failed, NOW + IMAGE_GRACE) is needed


def test_an_event_of_the_future_delays_no_end() -> None:
    """The clock of the API server may be ahead of that of the operator, so an Event counts as new at most."""
    late = pending("ErrImagePull", "x", event=PodEvent(True, "Failed", "x", step_since=NOW + 9 * HOUR))

    assert waiting(late, NOW + HOUR).requeue_after == IMAGE_GRACE
