"""The requests of the operator, counted from lines of an audit log."""

import json
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.operator.audit import AuditLog, count, writes


def event(verb: str, resource: str, subresource: str = "", stage: str = "ResponseComplete") -> str:
    target = {"resource": resource, "namespace": "tenant", "name": "tickets", "apiVersion": "v1"}
    return json.dumps(
        {
            "kind": "Event",
            "level": "Metadata",
            "stage": stage,
            "verb": verb,
            "requestURI": "/apis/finetune.dev/v1alpha1/namespaces/tenant/finetunejobs/tickets",
            "objectRef": target | ({"subresource": subresource} if subresource else {}),
        }
    )


def test_requests_are_counted_by_verb_and_resource() -> None:
    lines = [event("get", "pods"), event("get", "pods"), event("patch", "finetunejobs", "status")]
    assert count(lines) == {"get pods": 2, "patch finetunejobs/status": 1}


def test_a_watch_is_not_counted_in_any_of_its_stages() -> None:
    assert count([event("watch", "pods", stage=stage) for stage in ("ResponseStarted", "ResponseComplete")]) == {}


def test_a_long_request_is_counted_once() -> None:
    assert count([event("list", "pods", stage=stage) for stage in ("ResponseStarted", "ResponseComplete")]).total() == 1


def test_a_request_that_the_server_could_not_answer_counts() -> None:
    assert count([event("get", "pods", stage="Panic")]).total() == 1


def test_a_request_without_a_resource_is_counted_by_its_path() -> None:
    line = json.dumps({"verb": "get", "stage": "ResponseComplete", "requestURI": "/version?timeout=30s"})
    assert count([line]) == {"get /version": 1}


def test_reads_and_reviews_of_permissions_are_no_writes() -> None:
    requests = count(
        [
            event("get", "pods"),
            event("list", "pods"),
            event("create", "subjectaccessreviews"),
            event("create", "localsubjectaccessreviews"),
            event("create", "jobs"),
            event("patch", "finetunejobs", "status"),
            event("delete", "jobs"),
        ]
    )
    assert writes(requests) == 3


def test_only_whole_lines_since_the_restart_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    assert log.requests().total() == 0
    path.write_text(event("get", "pods") + "\n")
    log.restart()
    with path.open("a") as file:
        file.write(event("list", "pods") + "\n" + event("get", "jobs")[:40])
    assert log.requests() == {"list pods": 1}


def test_the_first_write_is_found_by_the_time_of_its_request(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    assert log.first_write() is None
    moments = {"get": "00.000000Z", "patch": "02.500000Z", "create": "01.500000Z", "delete": "09.000000Z"}
    lines = [
        event(verb, "jobs").replace("{", f'{{"requestReceivedTimestamp": "2026-01-02T03:04:{moment}", ', 1)
        for verb, moment in moments.items()
    ]
    path.write_text("\n".join(lines) + "\n")
    assert log.first_write() == datetime(2026, 1, 2, 3, 4, 1, 500_000, tzinfo=UTC).timestamp()
