"""Why a pod has not started its trainer, and when that ends the job: a pod with a node holds its GPU."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import FailureReason, with_remedy
from finetune_operator.observed.causes import remedies
from finetune_operator.observed.causes.starting import (
    FETCH_LIMIT,
    IMAGE_GRACE,
    SLOW_LIMIT,
    START_LIMIT,
    STUCK_AFTER,
    is_stuck,
    waiting,
)
from finetune_operator.observed.facts.pods import Companion, PodCondition, PodEvent
from finetune_operator.observed.standing import Standing
from tests.unit.finetune_operator.worlds import NOW, PLACED, pending, pod

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "ImageInspectError"])
def test_an_image_that_cannot_be_pulled_gets_a_grace_and_then_fails(reason: str) -> None:
    stuck = pod("Pending", waiting_reason=reason, waiting_message="no such image")

    early = waiting(stuck, NOW + timedelta(seconds=10))
    late = waiting(stuck, NOW + IMAGE_GRACE)

    assert (early.standing, early.requeue_after) == (Standing.WAITING, IMAGE_GRACE - timedelta(seconds=10))
    assert (late.standing, late.failure) == (Standing.FAILED, FailureReason.IMAGE_PULL_FAILED)
    assert "no such image" in late.message


def test_the_images_grace_counts_from_the_moment_a_node_was_found() -> None:
    placed = {"PodScheduled": PodCondition("True", "", "", since=NOW + timedelta(hours=1))}
    queued_long = pod("Pending", waiting_reason="ErrImagePull", conditions=placed)

    assert waiting(queued_long, NOW + timedelta(hours=1, seconds=10)).standing is Standing.WAITING


@pytest.mark.parametrize(
    ("reason", "grace"),
    [
        ("CreateContainerConfigError", IMAGE_GRACE),
        ("CreateContainerError", IMAGE_GRACE),
        ("CrashLoopBackOff", START_LIMIT),
        ("SomethingNew", START_LIMIT),
    ],
)
def test_a_container_that_cannot_be_made_is_explained_and_then_ends_the_job(reason: str, grace: timedelta) -> None:
    stuck = pending(waiting_reason=reason, waiting_message='configmap "ca" not found')

    early, late = waiting(stuck, NOW + SECOND), waiting(stuck, NOW + grace)

    assert late.message == f'Pod p cannot start: {reason}: configmap "ca" not found.'
    assert early.message == f"{late.message} Create ConfigMap ca. The pod then starts by itself."
    assert (early.standing, late.standing) == (Standing.WAITING, Standing.FAILED)
    assert late.failure is FailureReason.POD_START_FAILED


def test_an_image_that_is_not_the_trainers_is_not_blamed_on_the_profile() -> None:
    proxy = Companion("istio-init", comes_first=True, waiting_reason="ImagePullBackOff", waiting_message="not found")
    stuck = pending(waiting_reason="PodInitializing", companions=(proxy,))

    found = waiting(stuck, NOW + IMAGE_GRACE)

    assert found.failure is FailureReason.POD_START_FAILED
    assert found.message == "Pod p cannot start: container istio-init: ImagePullBackOff: not found."


def test_a_sidecar_beside_the_trainer_that_cannot_start_does_not_keep_the_trainer() -> None:
    broken = Companion("agent", waiting_reason="ImagePullBackOff")

    found = waiting(pending(companions=(broken,)), NOW)
    assert (found.standing, found.message) == (Standing.WAITING, "")


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (PodEvent(True, "FailedCreatePodSandBox", "plugin type=cni failed"), "FailedCreatePodSandBox: plugin type=cni"),
        (PodEvent(True, "FailedMount", 'configmap "b" not found'), 'FailedMount: configmap "b" not found.'),
    ],
)
def test_what_the_kubelet_says_is_told_and_after_minutes_frees_the_gpu(event: PodEvent, words: str) -> None:
    """A missing object is missing on each node. A network that cannot be set up is the node's."""
    stuck = pending(event=event)

    early, late = waiting(stuck, NOW + STUCK_AFTER), waiting(stuck, NOW + START_LIMIT)

    assert early.message.startswith(f"Pod p cannot start: {words}")
    assert (early.standing, late.standing) == (Standing.WAITING, Standing.FAILED)
    assert late.failure is (FailureReason.NODE_FAULT if "cni" in words else FailureReason.POD_START_FAILED)
    assert early.requeue_after is not None  # an Event wakes nobody


def test_a_volume_that_came_late_does_not_end_a_pod_that_pulls_its_image() -> None:
    ready = {**PLACED, "PodReadyToStartContainers": PodCondition("True", "", "")}
    late = pending(conditions=ready, event=PodEvent(True, "FailedMount", "timed out"))

    assert waiting(late, NOW + START_LIMIT).standing is Standing.WAITING


def test_an_image_that_takes_long_to_pull_is_told_of_and_waited_for() -> None:
    slow = pending(event=PodEvent(False, "Pulling", 'Pulling image "trainer:1"'))

    found = waiting(slow, NOW + timedelta(hours=1))

    assert found.standing is Standing.WAITING
    assert found.message == 'Pod p is starting on node n1: Pulling image "trainer:1".'


@pytest.mark.parametrize(
    "before",
    [
        Companion("fetch", comes_first=True, is_running=True),
        Companion("istio-proxy", comes_first=True, is_sidecar=True, is_running=True, is_ready=False),
    ],
)
def test_a_container_the_trainer_waits_for_is_named(before: Companion) -> None:
    found = waiting(pending(companions=(before,)), NOW + STUCK_AFTER)

    assert (found.standing, before.name in found.message) == (Standing.WAITING, True)


def test_a_model_that_is_being_fetched_is_no_container_that_somebody_added() -> None:
    fetching = Companion("fetch-model", comes_first=True, is_running=True)

    found = waiting(pending(companions=(fetching,)), NOW + STUCK_AFTER)

    assert found.standing is Standing.WAITING
    assert found.message == "The base model is being fetched. Its log: kubectl logs p --container fetch-model."


def test_the_image_of_the_container_that_fetches_the_model_is_the_trainers() -> None:
    fetching = Companion(
        "fetch-model", comes_first=True, waiting_reason="ImagePullBackOff", waiting_message="not found"
    )

    found = waiting(pending(waiting_reason="PodInitializing", companions=(fetching,)), NOW + IMAGE_GRACE)

    assert found.failure is FailureReason.IMAGE_PULL_FAILED
    assert found.message == "Pod p cannot start: ImagePullBackOff: not found."


FETCHING, FETCHED = (
    Companion("fetch-model", comes_first=True, is_running=True),
    Companion("fetch-model", comes_first=True, exit_code=0),
)
HANGING = Companion("vault-agent", comes_first=True, is_running=True)
FETCHES = with_remedy("container fetch-model, which fetches the base model, had not ended.", remedies.UNENDED_FETCH)


@pytest.mark.parametrize(
    ("fields", "limit", "failure", "words"),
    [
        ({"companions": (FETCHING,)}, FETCH_LIMIT, FailureReason.TRAINING_STALLED, FETCHES),
        ({"companions": (HANGING,)}, SLOW_LIMIT, FailureReason.POD_START_FAILED, "container vault-agent, which was"),
        (
            {"companions": (FETCHED, HANGING)},
            FETCH_LIMIT,
            FailureReason.POD_START_FAILED,
            "container vault-agent, which was added to the pod and runs before it, was not done.",
        ),
        ({}, SLOW_LIMIT, FailureReason.POD_START_FAILED, "no Event reports the cause."),
        (
            {"event": PodEvent(False, "Pulling", 'Pulling image "trainer:1"')},
            SLOW_LIMIT,
            FailureReason.POD_START_FAILED,
            'Pulling image "trainer:1".',
        ),
    ],
    ids=["fetch", "init container", "init container after a fetch", "without an Event", "pull"],
)
def test_a_pod_that_never_comes_to_its_trainer_gives_its_gpu_back(
    fields: dict[str, Any], limit: timedelta, failure: FailureReason, words: str
) -> None:
    stuck = pending(**fields)

    early, late = waiting(stuck, NOW + limit - SECOND), waiting(stuck, NOW + limit)

    assert early.standing is Standing.WAITING
    assert (late.standing, late.failure) == (Standing.FAILED, failure)
    hours = limit // timedelta(hours=1)
    assert late.message.startswith(f"Pod p was on node n1 for {hours} hours and did not start its trainer: ")
    assert words in late.message


@pytest.mark.parametrize(
    ("changed", "stuck"),
    [
        ({}, True),
        ({"started": NOW}, False),
        ({"due": NOW}, False),
        ({"waiting_reason": "ErrImagePull"}, False),
        ({"waiting_reason": "ContainerCreating"}, True),
        ({"conditions": {}}, False),
        ({"conditions": {"PodScheduled": PodCondition("False", "Unschedulable", "")}}, False),
    ],
)
def test_events_are_read_only_of_a_pod_that_is_placed_and_silent_for_long(changed: dict[str, Any], stuck: bool) -> None:
    silent = pending(**changed)

    assert not is_stuck(silent, NOW + STUCK_AFTER - SECOND)
    assert is_stuck(silent, NOW + STUCK_AFTER) is stuck


def test_a_starting_pod_is_looked_at_again_when_it_would_be_stuck() -> None:
    assert waiting(pending(), NOW + SECOND).requeue_after == STUCK_AFTER - SECOND


def test_an_event_without_bound_is_cut() -> None:
    stuck = pending(event=PodEvent(True, "FailedCreatePodSandBox", "x" * 9000))

    assert len(waiting(stuck, NOW + START_LIMIT).message) < 2000
