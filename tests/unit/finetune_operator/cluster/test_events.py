"""Which of a child's Events counts: the latest, by whichever field its recorder fills."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.cluster.events import holds_up, latest

FIELDS = st.sampled_from(["lastTimestamp", "eventTime", "series", "creationTimestamp"])


def event(second: int, field: str, type: str = "Normal") -> dict[str, Any]:
    moment = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    first = "1970-01-01T00:00:00Z"
    found: dict[str, Any] = {"type": type, "message": str(second), "metadata": {"creationTimestamp": first}}
    if field == "series":
        return {**found, "eventTime": first, "lastTimestamp": None, "series": {"lastObservedTime": moment}}
    if field == "creationTimestamp":
        return {**found, "lastTimestamp": None, "metadata": {"creationTimestamp": moment}}
    return {**found, field: moment}


@given(st.lists(st.tuples(st.integers(0, 10**6), FIELDS), min_size=1))
def test_the_latest_is_found_whatever_field_tells_its_time(seen: list[tuple[int, str]]) -> None:
    last = latest([event(*each) for each in seen])

    assert last is not None
    assert last["message"] == str(max(second for second, _ in seen))


def test_of_two_at_once_the_warning_counts() -> None:
    both = [event(7, "lastTimestamp", "Warning"), event(7, "lastTimestamp")]

    assert (latest(both) or {})["type"] == (latest(both[::-1]) or {})["type"] == "Warning"


def test_what_was_said_before_the_job_was_resumed_is_over() -> None:
    assert latest([event(7, "lastTimestamp")], since=datetime.fromtimestamp(8, UTC)) is None
    assert latest([]) is None


@pytest.mark.parametrize(
    ("reason", "does"),
    [
        ("FailedCreatePodSandBox", True),
        ("FailedMount", True),
        ("FailedAttachVolume", True),
        ("FailedPrepareDynamicResources", True),
        ("NetworkNotReady", True),
        ("MissingClusterDNS", False),
        ("DNSConfigForming", False),
        ("FailedToRetrieveImagePullSecret", False),
    ],
)
def test_a_warning_that_the_kubelet_repeats_for_every_pod_holds_none_up(reason: str, does: bool) -> None:
    assert holds_up(reason) is does
