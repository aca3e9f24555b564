"""The pod's part of the status, against a stand-in for an API server that is away, slow or refuses at will.

What a real API server makes of the applies is in tests/integration/finetune_trainer/test_status_writer.py.
"""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from finetune_api.bundle import JobIdentity
from finetune_api.reasons import FailureReason
from finetune_api.status.job import ConditionType, FineTuneJobStatus, Training
from finetune_api.status.preflight import Preflight
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import StopRequested, Superseded, TrainerFailure
from finetune_trainer.pod.status import status_writer
from finetune_trainer.pod.status.status_writer import StatusWriter

JOB = JobIdentity(namespace="team", name="tickets", uid="u-1", generation=3)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Server(ThreadingHTTPServer):
    """Answers each PATCH with the next of `codes` (200 when there is none left) and keeps what it was sent.

    It answers 401 to other tokens than `token`, if that is set. Each PATCH that it carries out makes a new version of
    the job. One for another version is refused."""

    daemon_threads = True

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.token: str | None = None
        self.uid = JOB.uid
        self.version = 1
        self.reads: list[int] = []
        """The codes with which it answers GETs; 200 when there is none left."""
        self.metadata: dict[str, Any] = {}
        self.status: dict[str, Any] = {}
        self.names = JOB.name
        """What its refusals are about."""
        self.owners: list[str] = []
        """Field managers that its refusals name."""
        self.requests: list[dict[str, Any]] = []
        self.hang = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def statuses(self) -> list[dict[str, Any]]:
        return [request["body"]["status"] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        code = self.server.reads.pop(0) if self.server.reads else 200
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            code = 401
        self.respond(code, {"metadata": self.metadata()} if code == 200 else {"message": f"code {code}"})

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        url = urlsplit(self.path)
        self.server.requests.append(
            {"path": url.path, "query": parse_qs(url.query), "headers": dict(self.headers), "body": body}
        )
        code = self.server.codes.pop(0) if self.server.codes else 200
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            code = 401
        if code == 0:
            self.server.hang.wait(30)
            self.close_connection = True  # nobody waits for the answer any more
            return
        if code == 200 and body["metadata"].get("resourceVersion", str(self.server.version)) != str(
            self.server.version
        ):
            code = 409
        self.server.version += code == 200
        job = {"metadata": self.metadata(), "status": {**body["status"], **self.server.status}}
        causes = [{"message": f'conflict with "{owner}" using finetune.dev/v1alpha1'} for owner in self.server.owners]
        refusal = {"message": f"code {code}", "details": {"name": self.server.names, "causes": causes}}
        self.respond(code, job if code == 200 else refusal)

    def metadata(self) -> dict[str, Any]:
        return {"uid": self.server.uid, "resourceVersion": str(self.server.version)} | self.server.metadata

    def respond(self, code: int, content: dict[str, Any]) -> None:
        answer = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keeps the tests' output quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.hang.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first\n")
    return tmp_path


@pytest.fixture
def writer(server: Server, account: Path) -> StatusWriter:
    return StatusWriter(JOB, "attempt-1", account, server.address, clock=lambda: NOW)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


def training(step: int, loss: float | None = None) -> Training:
    return Training(attempt=1, step=step, total_steps=10, loss=loss, observed_time=NOW)


def test_an_apply_names_the_job_the_manager_and_who_writes(server: Server, writer: StatusWriter) -> None:
    writer.progress(training=training(1))
    request = server.requests[0]
    assert request["path"] == "/apis/finetune.dev/v1alpha1/namespaces/team/finetunejobs/tickets/status"
    assert request["body"]["metadata"] == {"namespace": "team", "name": "tickets", "resourceVersion": "1"}
    assert request["query"]["fieldManager"] == ["attempt-1"]
    assert request["headers"]["Content-Type"] == "application/apply-patch+yaml"
    assert request["headers"]["Authorization"] == "Bearer first"


def test_only_the_first_apply_that_comes_through_forces(server: Server, writer: StatusWriter) -> None:
    server.codes = [503]
    for step in range(3):
        writer.progress(training=training(step))
    assert [request["query"]["force"] for request in server.requests] == [["true"], ["true"], ["false"]]


def test_each_apply_carries_everything_written_so_far(server: Server, writer: StatusWriter) -> None:
    writer.progress(training=training(1))
    writer.condition(ConditionType.TRAINED, True, "Trained", "Done.")
    writer.result(preflight=Preflight(rows=7))
    assert server.statuses()[-1].keys() == {"training", "conditions", "preflight"}


def versions(server: Server) -> list[str | None]:
    """The version of the job that each apply named."""
    return [request["body"]["metadata"].get("resourceVersion") for request in server.requests]


def test_each_apply_names_the_version_of_the_last_answer(server: Server, writer: StatusWriter) -> None:
    for step in range(3):
        writer.progress(training=training(step))
    assert versions(server) == ["1", "2", "3"]


def test_a_job_that_others_have_changed_is_read_again_before_the_next_apply(
    server: Server, writer: StatusWriter
) -> None:
    writer.progress(training=training(1))
    server.version = 7
    writer.progress(training=training(2))
    assert versions(server) == ["1", "2", "7"]
    assert server.statuses()[-1]["training"]["step"] == 2


def test_a_job_that_always_changes_is_tried_a_few_times_and_then_with_the_next_update(
    server: Server, writer: StatusWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    server.codes = [409] * status_writer.MOST_VERSIONS
    writer.progress(training=training(1))
    assert "HTTP 409: the job changed 5 times between a read and the apply" in capsys.readouterr().out
    writer.progress(training=training(2))
    assert server.statuses()[-1]["training"]["step"] == 2


def test_a_pod_that_may_not_read_the_job_applies_to_any_version(server: Server, writer: StatusWriter) -> None:
    server.reads = [403]
    writer.progress(training=training(1))
    assert versions(server) == [None]


def test_a_pod_of_an_earlier_job_with_this_name_writes_nothing(server: Server, writer: StatusWriter) -> None:
    server.uid = "u-2"
    with pytest.raises(Superseded, match="another job was created with its name"):
        writer.progress(training=training(1))
    assert server.requests == []


def test_the_token_is_read_anew_for_each_apply(server: Server, writer: StatusWriter, account: Path) -> None:
    writer.progress(training=training(1))
    (account / "token").write_text("second")
    writer.progress(training=training(2))
    assert [request["headers"]["Authorization"] for request in server.requests] == ["Bearer first", "Bearer second"]


def test_what_is_no_number_in_json_is_left_out(server: Server, writer: StatusWriter) -> None:
    writer.progress(training=training(1, loss=float("nan")))
    writer.progress(training=training(2, loss=float("inf")))
    assert ["loss" in status["training"] for status in server.statuses()] == [False, False]


def test_a_condition_carries_generation_and_the_time_its_status_changed(server: Server, account: Path) -> None:
    moments = (NOW + timedelta(seconds=n) for n in range(9))
    writer = StatusWriter(JOB, "preflight", account, server.address, clock=lambda: next(moments))
    for status, reason in ((False, "A"), (False, "B"), (True, "C"), (True, "D")):
        writer.condition(ConditionType.VALIDATED, status, reason, "m")
        writer.progress()
    found = [status["conditions"][0] for status in server.statuses()]
    assert [condition["lastTransitionTime"][-3:] for condition in found] == ["05Z", "05Z", "06Z", "06Z"]
    assert [condition["reason"] for condition in found] == list("ABCD")
    assert {condition["observedGeneration"] for condition in found} == {3}


def test_a_condition_an_earlier_attempt_wrote_keeps_its_time(server: Server, writer: StatusWriter) -> None:
    earlier = {"type": "Trained", "status": "True", "reason": "x", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    writer._remember({"status": {"conditions": [earlier]}})
    writer.condition(ConditionType.TRAINED, True, "Trained", "again")
    writer.result()
    assert server.statuses()[-1]["conditions"][0]["lastTransitionTime"] == "2020-01-01T00:00:00Z"


def test_a_deleted_job_ends_the_pod(server: Server, writer: StatusWriter) -> None:
    server.codes = [404, 404]
    with pytest.raises(Superseded):
        writer.progress(training=training(1))
    with pytest.raises(Superseded):
        writer.result(training=training(1))


@pytest.mark.parametrize("owners", [["attempt-3"], ["attempt-2"], ["attempt-1", "attempt-3"], ["kubectl-edit"]])
def test_a_conflict_with_a_later_attempt_or_another_writer_ends_the_pod(
    server: Server, account: Path, owners: list[str]
) -> None:
    second = StatusWriter(JOB, "attempt-2", account, server.address, clock=lambda: NOW)
    server.codes, server.owners = [409], owners
    with pytest.raises(Superseded, match=owners[-1]):
        second.progress(training=training(1))


def test_fields_of_earlier_attempts_are_taken_over(server: Server, account: Path) -> None:
    tenth = StatusWriter(JOB, "attempt-10", account, server.address, clock=lambda: NOW)
    tenth.progress(training=training(1))
    server.codes, server.owners = [409], ["attempt-9", "attempt-1"]
    tenth.progress(training=training(2))
    assert [request["query"]["force"] for request in server.requests] == [["true"], ["false"], ["true"]]
    assert server.statuses()[-1] == server.statuses()[-2]


def test_what_only_earlier_attempts_wrote_is_removed(server: Server, account: Path) -> None:
    owners = ["attempt-1", "attempt-2", "attempt-3", "preflight", "finetune-operator"]
    server.metadata = {"managedFields": [{"manager": owner, "subresource": "status"} for owner in owners]}
    StatusWriter(JOB, "attempt-2", account, server.address, clock=lambda: NOW).progress(training=training(1))
    (_, removed) = server.requests
    assert (removed["query"]["fieldManager"], removed["body"]["status"]) == (["attempt-1"], {})


def test_a_job_created_anew_under_the_same_name_ends_the_pod(server: Server, writer: StatusWriter) -> None:
    server.uid = "u-2"
    with pytest.raises(Superseded, match="another job was created with its name"):
        writer.progress(training=training(1))


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_a_job_that_has_ended_without_this_pod_ends_the_pod(server: Server, writer: StatusWriter, end: str) -> None:
    condition = {"type": end, "status": "True", "reason": "R", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    server.status = {"state": end, "conditions": [condition]}
    with pytest.raises(Superseded, match=f"already ended as {end}"):
        writer.progress(training=training(1))


def test_a_job_that_is_being_deleted_ends_the_pod(server: Server, writer: StatusWriter) -> None:
    server.metadata = {"deletionTimestamp": "2020-01-01T00:00:00Z"}
    with pytest.raises(Superseded, match="being deleted"):
        writer.result(training=training(1))


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a minute after the last."""
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))


@pytest.mark.parametrize(("code", "seconds"), [(401, 120), (403, 300), (404, 300)])
@pytest.mark.usefixtures("minutes")
def test_a_pod_that_is_refused_for_minutes_ends_and_says_by_what(
    server: Server, writer: StatusWriter, code: int, seconds: int
) -> None:
    server.codes, server.names = [code] * 20, ""  # as where the server does not know FineTuneJobs, or not this pod

    def write_on() -> None:
        for step in range(20):
            writer.progress(training=training(step))

    with pytest.raises(Superseded, match=rf"has not let this pod .* for {seconds} s \(HTTP {code}: code {code}\)"):
        write_on()
    assert len(server.requests) == seconds / 60 + 1


@pytest.fixture
def disowned(server: Server, writer: StatusWriter) -> StatusWriter:
    """One whose token was accepted, and then became invalid: its ServiceAccount was deleted."""
    writer.progress(training=training(1))
    server.token = "that of the new ServiceAccount"
    return writer


@pytest.mark.usefixtures("minutes", "unstopped")
def test_a_token_that_has_become_invalid_stops_the_pod_as_an_interruption(
    server: Server, disowned: StatusWriter
) -> None:
    disowned.progress(training=training(2))
    disowned.progress(training=training(3))
    with pytest.raises(StopRequested) as stop:
        disowned.progress(training=training(4))
    failure = termination.failure_after_stop(stop.value)
    assert failure.reason is FailureReason.PREEMPTED
    assert failure.message == (
        "The pod lost its access to the API server, as when its ServiceAccount is deleted (HTTP 401: code 401). "
        "Its work was not done."
    )


@pytest.mark.usefixtures("minutes", "unstopped")
def test_a_training_whose_token_is_invalid_can_store_a_checkpoint_and_report_before_it_stops(
    server: Server, disowned: StatusWriter
) -> None:
    with pytest.raises(StopRequested), termination.stop_deferred():  # noqa: PT012
        for step in range(2, 9):
            disowned.progress(training=training(step))
        assert termination.stop_requested()
    termination.write_failure(termination.failure_after_stop(StopRequested()))
    disowned.progress(training=training(8))
    assert len(server.requests) == 9


@pytest.mark.usefixtures("minutes", "unstopped", "no_waiting")
def test_a_result_whose_token_is_invalid_stops_the_pod_also_where_stops_are_deferred(disowned: StatusWriter) -> None:
    reached = []
    with pytest.raises(StopRequested), termination.stop_deferred():  # noqa: PT012
        disowned.result(training=training(10))
        reached.append("the end")
    assert not reached


@pytest.mark.usefixtures("minutes", "unstopped", "no_waiting")
def test_an_invalid_token_does_not_take_the_place_of_a_failure(disowned: StatusWriter) -> None:
    termination.write_failure(TrainerFailure(FailureReason.DATASET_INVALID, "Line 7 of rows.jsonl is empty."))
    with pytest.raises(Superseded, match="HTTP 401"):
        disowned.result(training=training(10))
    assert not termination.stop_requested()


@pytest.mark.usefixtures("minutes", "unstopped")
def test_a_token_that_the_kubelet_renews_in_time_is_used(server: Server, disowned: StatusWriter, account: Path) -> None:
    disowned.progress(training=training(2))
    disowned.progress(training=training(3))
    assert server.token
    (account / "token").write_text(server.token)
    for step in range(4, 9):
        disowned.progress(training=training(step))
    assert server.statuses()[-1]["training"]["step"] == 8
    assert not termination.stop_requested()


@pytest.mark.usefixtures("minutes", "unstopped")
def test_a_missing_permission_is_not_taken_for_an_invalid_token(server: Server, writer: StatusWriter) -> None:
    """A RoleBinding that is created again."""
    writer.progress(training=training(1))
    server.codes = [401, 401, 403, 401, 401]
    for step in range(2, 8):
        writer.progress(training=training(step))
    assert server.statuses()[-1]["training"]["step"] == 7
    assert not termination.stop_requested()


@pytest.mark.usefixtures("minutes", "no_waiting")
def test_a_result_that_is_refused_for_minutes_ends_the_pod(server: Server, writer: StatusWriter) -> None:
    server.codes = [403] * 20
    with pytest.raises(Superseded, match="HTTP 403"):
        writer.result(training=training(1))


@pytest.mark.parametrize("between", [200, 503])
@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.usefixtures("minutes")
def test_refusals_with_another_answer_between_them_do_not_add_up(
    server: Server, writer: StatusWriter, code: int, between: int
) -> None:
    server.codes = [code, between] * 10
    for step in range(20):
        writer.progress(training=training(step))
    assert len(server.requests) == 20


@pytest.mark.parametrize("code", [401, 403, 409, 429, 500, 503])
def test_progress_outlives_an_api_server_that_refuses(server: Server, writer: StatusWriter, code: int) -> None:
    server.codes = [code]
    writer.progress(training=training(1))
    writer.progress(preflight=Preflight(rows=1))
    assert server.statuses()[-1]["training"]["step"] == 1


def test_progress_outlives_an_api_server_that_is_away(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StatusWriter(JOB, "attempt-1", account, "http://127.0.0.1:1").progress(training=training(1))
    assert "The status was not written" in capsys.readouterr().out


def test_progress_waits_for_a_shorter_time_than_a_result(
    server: Server, writer: StatusWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_writer, "PROGRESS_TIMEOUT_SECONDS", 0.2)
    server.codes = [0]
    started = datetime.now(UTC)
    writer.progress(training=training(1))
    assert datetime.now(UTC) - started < timedelta(seconds=status_writer.RESULT_TIMEOUT_SECONDS)


def test_a_result_is_written_once_the_api_server_is_back(
    server: Server, writer: StatusWriter, no_waiting: list[float]
) -> None:
    server.codes = [503, 500, 429]
    writer.result(training=training(10))
    assert server.statuses()[-1]["training"]["step"] == 10
    assert no_waiting == [1.0, 2.0, 4.0]


def test_a_result_that_cannot_be_written_for_minutes_is_an_error(
    server: Server, writer: StatusWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_writer, "RESULT_PATIENCE_SECONDS", 5.0)
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    server.codes = [503] * 20
    with pytest.raises(ConnectionError, match="HTTP 503"):
        writer.result(training=training(10))


def test_a_status_the_schema_refuses_is_an_error_and_not_tried_again(server: Server, writer: StatusWriter) -> None:
    server.codes = [422]
    with pytest.raises(RuntimeError, match="does not accept"):
        writer.result(training=training(1))
    assert len(server.requests) == 1


def test_outside_kubernetes_the_status_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    writer = StatusWriter(None, "preflight")
    writer.progress(preflight=Preflight(rows=7))
    printed = capsys.readouterr().out.removeprefix("preflight: ")
    assert FineTuneJobStatus.model_validate_json(printed).preflight == Preflight(rows=7)
