"""Claims are read only before a pod is created, and only those that this pod needs."""

from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import pytest

from finetune_api.status.job import ConditionType
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.claims import claims_of
from finetune_operator.observed.facts.claims import Attachment, Claim
from finetune_operator.observed.facts.pods import Object
from tests.unit.finetune_operator.decisions.objects.test_claims import job
from tests.unit.finetune_operator.decisions.objects.test_model_cache import profile
from tests.unit.finetune_operator.worlds import NOW, SPEC, attempt, fresh, pod, preflight, saying

RAW = {
    "metadata": {"name": "models"},
    "spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "volumeName": "pv-1"},
    "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"]},
}


SINCE = "2026-01-02T03:04:05Z"
FORBIDDEN = "forbidden"
"""State of nodes that the operator must not read."""


class Cluster:
    """An API server that has the claim models and nodes in one state, and counts what it is asked."""

    def __init__(self, ready: str = "Unknown") -> None:
        self.ready = ready
        self.asked: list[tuple[str, str, str | None]] = []
        self.listings: list[str] = []

    def listed(self, path: str, labels: str) -> list[Object]:
        self.listings.append(path)
        return [
            {"spec": {"nodeName": "n1", "source": {"persistentVolumeName": "pv-1"}}},
            {"spec": {"nodeName": "n2", "source": {"persistentVolumeName": "pv-2"}}},
            {"spec": {"nodeName": "n3", "source": {"inlineVolumeSpec": {}}}},
        ]

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        self.asked.append((kind, name, namespace))
        if kind == "Node" and self.ready == FORBIDDEN:
            raise ApiError(403, "nodes is forbidden")
        if kind == "Node":
            return {"status": {"conditions": [{"type": "Ready", "status": self.ready, "lastTransitionTime": SINCE}]}}
        return RAW if name == "models" else None


def read(world: Any, spec: Any = None, ready: str = "Unknown") -> tuple[dict[str, Claim | None], Cluster]:
    api = Cluster(ready)
    return claims_of(cast(Api, api), world, spec or job()), api


def test_the_claims_of_the_preflight_are_read_in_the_namespace_of_the_job() -> None:
    found, api = read(fresh())
    assert found == {"models": Claim("Bound", ("ReadWriteOnce",), "pv-1"), "data": None}
    assert {asked[2] for asked in api.asked} == {"team"}


def test_after_the_preflight_only_the_claims_of_the_training_pod_are_read() -> None:
    assert list(read(saying(fresh(), ConditionType.VALIDATED))[0]) == ["models"]


def test_nothing_is_read_while_a_pod_runs_or_for_a_suspended_job_or_one_without_claims() -> None:
    running = fresh(preflight=preflight(pod("Running")))
    for world, spec in ((running, job()), (fresh(), job(suspend=True)), (fresh(), SPEC)):
        found, api = read(world, spec)
        assert (found, api.asked) == ({}, [])


def test_a_claim_that_is_being_deleted_is_recognized() -> None:
    leaving = RAW | {"metadata": {"name": "models", "deletionTimestamp": "2026-01-02T03:04:05Z"}}
    assert Claim.parse(leaving).is_leaving
    assert not Claim.parse(RAW).is_leaving


def test_a_claim_without_a_status_is_pending_with_the_modes_that_it_requests() -> None:
    assert Claim.parse({"metadata": {}, "spec": {"accessModes": ["ReadWriteMany"]}}) == Claim(
        "Pending", ("ReadWriteMany",)
    )


def after(spec: Any, reason: str | None, node: str = "n1") -> Any:
    """A job whose first attempt has run on this node, and has ended for this reason if there is one."""
    ended = {"number": 1, "name": "a", "nodeName": node, "startTime": NOW.isoformat(), "message": "M."}
    attempts = [ended | ({"reason": reason} if reason else {})]
    return saying(fresh(spec=spec), ConditionType.VALIDATED, attempts=attempts)


def attachment(world: Any, spec: Any, ready: str = "Unknown") -> tuple[Attachment | None, bool]:
    """The attachment of claim models, and whether the attachments were listed."""
    known, api = read(world, spec, ready)
    claim = known["models"]
    assert claim
    return claim.attached, bool(api.listings)


def test_attachments_are_listed_only_after_a_lost_node_and_for_a_volume_of_one_node() -> None:
    spec = job(output={"uri": "pvc://models/run"})
    assert attachment(after(spec, "NodeLost"), spec) == (Attachment("n1"), True)
    for reason in ("Evicted", "Suspended"):
        assert attachment(after(spec, reason), spec) == (Attachment("n1"), True), "the node does not answer"
        assert attachment(after(spec, reason), spec, "True") == (None, False)
    assert attachment(after(spec, None), spec) == (None, False), "the attempt goes on"


def test_a_node_that_must_not_be_read_is_taken_for_silent_only_after_its_loss() -> None:
    spec = job(output={"uri": "pvc://models/run"})
    assert attachment(after(spec, "NodeLost"), spec, FORBIDDEN) == (Attachment("n1"), True)
    assert attachment(after(spec, "GPUOutOfMemory"), spec, FORBIDDEN) == (None, False)


def test_only_the_attachment_to_the_lost_node_counts() -> None:
    spec = job(output={"uri": "pvc://models/run"})
    assert attachment(after(spec, "NodeLost", node="n2"), spec) == (None, True)


@pytest.mark.parametrize(
    ("ready", "since"), [("True", datetime.fromisoformat(SINCE)), ("Unknown", None)], ids=["answers", "is silent"]
)
def test_an_attachment_tells_since_when_its_node_answers(ready: str, since: datetime | None) -> None:
    spec = job(output={"uri": "pvc://models/run"})
    assert attachment(after(spec, "NodeLost"), spec, ready)[0] == Attachment("n1", since)


def test_the_claim_of_the_cache_is_read_before_an_attempt_also_beside_a_sidecar_of_the_preflight() -> None:
    settings, spec = profile(claimName="models"), SPEC
    succeeded = preflight(pod("Running", exit_code=0))
    for world in (saying(fresh(), ConditionType.VALIDATED), fresh(preflight=succeeded)):
        assert list(read(replace(world, profile=settings), spec)[0]) == ["models"]
    assert read(fresh(profile=settings), spec)[0] == {}
    running = saying(fresh(profile=settings), ConditionType.VALIDATED)
    assert read(replace(running, attempts={1: attempt(pod("Running"))}), spec)[0] == {}
