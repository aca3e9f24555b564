"""A pod's JSON: the trainer's container is found by its name, wherever webhooks put theirs."""

from datetime import datetime
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_operator.observed.facts.pods import Pod
from tests.unit.finetune_operator.skewed import AT_ONCE, HOUR, PLACED, RAN, on_a_node

STARTED, ENDED = "2026-01-02T03:04:05Z", "2026-01-02T03:05:05Z"


def container(name: str, **state: Any) -> dict[str, Any]:
    return {"name": name, "state": state, "started": "running" in state}


def pod(phase: str, *containers: dict[str, Any], before: tuple[dict[str, Any], ...] = ()) -> Pod:
    sidecars = [{"name": c["name"], "restartPolicy": "Always"} for c in before if c["name"].endswith("proxy")]
    return Pod.parse(
        {
            "metadata": {"name": "p", "uid": "u", "creationTimestamp": STARTED},
            "spec": {"initContainers": sidecars},
            "status": {"phase": phase, "containerStatuses": list(containers), "initContainerStatuses": list(before)},
        }
    )


TRAINED = container(
    "trainer", terminated={"exitCode": 29, "startedAt": STARTED, "finishedAt": ENDED, "reason": "Error"}
)
PROXY = container("istio-proxy", running={"startedAt": STARTED})


@pytest.mark.parametrize("order", [(TRAINED, PROXY), (PROXY, TRAINED)])
def test_the_trainer_is_found_by_name(order: tuple[dict[str, Any], ...]) -> None:
    found = pod("Running", *order)

    assert (found.exit_code, found.trainer_ended, found.trainer_succeeded) == (29, True, False)
    assert [companion.name for companion in found.companions] == ["istio-proxy"]
    assert found.lingering == "istio-proxy"


def test_a_sidecars_end_is_not_the_trainers() -> None:
    found = pod(
        "Running",
        container("istio-proxy", terminated={"exitCode": 1, "reason": "OOMKilled"}),
        container("trainer", running={"startedAt": STARTED}),
    )

    assert (found.exit_code, found.termination_reason, found.trainer_ended) == (None, "", False)


@pytest.mark.parametrize("hours", [-30, -1, 0, 1, 30])
def test_the_end_of_a_pod_is_by_the_clock_of_the_cluster(hours: int) -> None:
    """The node's clock may be wrong. The API server's is in the same pod."""
    found = Pod.parse(on_a_node(hours * HOUR))

    assert found.finished is not None
    assert PLACED + RAN <= found.finished <= PLACED + RAN + AT_ONCE
    assert found.behind == max(-hours, 0) * HOUR


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_the_order_of_an_eviction_and_of_the_end_that_it_caused_stays(hours: int) -> None:
    found = Pod.parse(on_a_node(hours * HOUR, evicted=True))

    since = found.conditions["DisruptionTarget"].since
    assert since is not None
    assert found.finished is not None
    assert found.finished - since == AT_ONCE


def test_a_pod_without_the_times_of_the_api_server_keeps_those_of_its_node() -> None:
    raw = on_a_node(HOUR)
    del raw["metadata"]["managedFields"], raw["status"]["startTime"]

    assert Pod.parse(raw).finished == PLACED + RAN + HOUR


def test_init_containers_and_native_sidecars_come_before_the_trainer() -> None:
    failed = container("init", terminated={"exitCode": 3})
    found = pod("Pending", container("trainer", waiting={"reason": "PodInitializing"}), before=(failed, PROXY))

    assert [(c.name, c.comes_first, c.is_sidecar, c.exit_code) for c in found.companions] == [
        ("init", True, False, 3),
        ("istio-proxy", True, True, None),
    ]


def test_a_pod_whose_containers_have_all_ended_lingers_for_none() -> None:
    assert pod("Failed", TRAINED, PROXY).lingering == ""


def test_a_pod_that_was_just_made_has_neither_started_nor_ended() -> None:
    found = Pod.parse({"metadata": {"name": "p", "creationTimestamp": STARTED}})

    assert (found.phase, found.started, found.trainer_ended, found.placed) == ("Pending", None, False, None)


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(25, FailureReason.STORAGE_ACCESS_DENIED), (77, FailureReason.TRAINER_CRASHED)],
)
def test_a_reason_of_a_later_trainer_becomes_that_of_its_exit_code_and_is_told(
    exit_code: int, reason: FailureReason
) -> None:
    said = '{"reason": "QuotaUsedUp", "message": "The bucket is full.", "step": 7, "later": {}}'
    ended = {"exitCode": exit_code, "reason": "Error", "message": said}

    told = pod("Failed", container("trainer", terminated=ended)).termination

    assert told is not None
    assert (told.reason, told.message, told.step) == (reason, "QuotaUsedUp: The bucket is full.", 7)


@pytest.mark.parametrize("said", ["", "killed", "[]", "7", '"text"', "{}", '{"reason": 7}', '{"reason": "New"}'])
def test_what_is_no_message_of_the_trainer_is_none(said: str) -> None:
    """`{"reason": "New"}` without an exit code is none either."""
    ended = {"exitCode": 0, "message": said}

    assert pod("Failed", container("trainer", terminated=ended)).termination is None


def test_the_end_of_a_container_before_the_trainer_is_by_the_clock_of_the_cluster() -> None:
    raw = on_a_node(-HOUR)
    written = max(entry["time"] for entry in raw["metadata"]["managedFields"] if "time" in entry)
    raw["status"]["initContainerStatuses"] = [
        container("fetch-model", terminated={"exitCode": 0, "finishedAt": (PLACED + RAN - HOUR).isoformat()})
    ]

    (fetched,) = Pod.parse(raw).companions

    assert fetched.finished is not None
    assert fetched.finished >= PLACED
    assert fetched.finished.isoformat() <= written


@pytest.mark.parametrize(
    ("reason", "kept"), [("StartError", "nvml error"), ("ContainerCannotRun", "nvml error"), ("Error", "")]
)
def test_of_the_words_of_other_containers_only_those_of_the_runtime_are_kept(reason: str, kept: str) -> None:
    """The end of a log may show secrets."""
    ended = container("fetch-model", terminated={"exitCode": 128, "reason": reason, "message": "nvml error"})

    (found,) = pod("Failed", before=(ended,)).companions

    assert found.runtime_error == kept


def unscheduled(*managed: tuple[str, str, list[str]], status: str = "False") -> Pod:
    """A pod whose managedFields have these managers: name, time, and the fields of PodScheduled that are theirs."""
    condition = {"type": "PodScheduled", "status": status, "reason": "Unschedulable", "message": "0/1 nodes"}
    entries = [
        {
            "manager": manager,
            "operation": "Update",
            "subresource": "status",
            "time": time,
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:status": {
                    "f:conditions": {".": {}, 'k:{"type":"PodScheduled"}': {f"f:{field}": {} for field in fields}},
                }
            },
        }
        for manager, time, fields in managed
    ]
    metadata = {"name": "p", "creationTimestamp": STARTED, "managedFields": entries}
    return Pod.parse({"metadata": metadata, "status": {"conditions": [{**condition, "lastTransitionTime": STARTED}]}})


WORDS, TYPE = ["lastTransitionTime", "message", "reason", "status"], ["type", "status"]


@pytest.mark.parametrize("scheduler", ["kube-scheduler", "volcano"])
def test_the_time_of_the_words_of_the_scheduler_is_that_of_the_field_manager_that_wrote_them(scheduler: str) -> None:
    refused = unscheduled((scheduler, ENDED, WORDS), ("kube-apiserver", "2026-01-02T09:00:00Z", TYPE))

    scheduled = refused.conditions["PodScheduled"]
    assert scheduled.since == datetime.fromisoformat(STARTED)
    assert scheduled.said_since == datetime.fromisoformat(ENDED)


def test_the_words_about_a_pod_that_has_a_node_and_words_of_an_unknown_time_have_none() -> None:
    placed = unscheduled(("kube-scheduler", ENDED, WORDS), status="True")

    assert [each.conditions["PodScheduled"].said_since for each in (placed, unscheduled())] == [None, None]


@pytest.mark.parametrize(("labels", "trains"), [({}, False), ({names.LABEL_ATTEMPT: "1"}, True)])
def test_a_pod_of_an_attempt_has_a_gpu_and_others_do_not(labels: dict[str, str], trains: bool) -> None:
    raw = on_a_node(0 * HOUR)
    raw["metadata"]["labels"] = labels

    assert Pod.parse(raw).trains is trains
