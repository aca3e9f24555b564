"""Writes the pod's part of the job's status with server-side apply.

Each apply contains everything written so far, because the API server removes fields that an apply leaves out. The first
apply uses force, and later ones do not, so that a pod that was replaced gets a conflict. The later attempt wins: a
conflict with fields that only earlier attempts own is forced, and any other conflict ends the pod. The fields of
earlier attempts are removed, so that the status never mixes two attempts. A pod also stops with Superseded if its job
has ended or if it is no longer allowed to write. A pod whose token has become invalid stops as after SIGTERM: it
stores a checkpoint, because another attempt has to go on.

Each apply names the version of the job that the pod has seen. An apply whose answer was not waited for can reach the
API server after the next one, for example through a load balancer or while etcd stands still. It then names an old
version and is refused. Without that, it would take back what the next one has written, such as the published results.
"""

import contextlib
import http.client
import json
import re
import time
import urllib.error
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.bundle import JobIdentity
from finetune_api.status.job import Condition, ConditionType, FineTuneJobStatus, attempt_of
from finetune_api.status.reading import read_status
from finetune_trainer.pod.failure import StopRequested, Superseded
from finetune_trainer.pod.liveness.heartbeat import beat
from finetune_trainer.pod.status.job_status import SERVICE_ACCOUNT, JobStatus
from finetune_trainer.pod.status.refusals import REFUSALS, Refusals
from finetune_trainer.pod.termination import is_reported, stop_because

PROGRESS_TIMEOUT_SECONDS = 3.0
RESULT_TIMEOUT_SECONDS = 10.0
RESULT_PATIENCE_SECONDS = 300.0
"""How long the pod retries to write a result while the API server is not available."""
_ONLY_PODS_OF = re.compile(r"only the pods (\S+)-\* may write the status of ")
"""How the chart's admission policy begins to refuse a pod of another job, or of an earlier job of the same name."""
CONFLICT_BYTES = 1 << 20
"""Most bytes that are read of an answer about a conflict. It names each field."""
MOST_VERSIONS = 5
"""How many versions of the job one apply tries, if others write the job between the read and the apply."""


MADE_AGAIN = "the job was deleted, and another job was created with its name"


class StatusWriter:
    """Writes parts of the status under one field manager. Outside Kubernetes (`job` is None) it prints them."""

    def __init__(
        self,
        job: JobIdentity | None,
        manager: str,
        service_account: Path = SERVICE_ACCOUNT,
        server: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._job, self._manager, self._clock = job, manager, clock
        self._at_server = JobStatus(job, service_account, server) if job else None
        self._version: str | None = None
        """The job's resourceVersion in the last answer; None if it is not known."""
        self._intent = FineTuneJobStatus()
        self._seen: dict[str, Condition] = {}
        self._owns = False
        self._refusals = Refusals()

    @property
    def intent(self) -> FineTuneJobStatus:
        """Everything written so far. The next apply contains it again."""
        return self._intent

    def progress(self, **parts: Any) -> None:
        """Applies parts of the status (fields of FineTuneJobStatus) once, within a few seconds. If the API server is
        not available, the next apply contains these parts too.

        Raises Superseded if another attempt now writes the status, if the job has ended or was deleted, or if the API
        server has refused this pod for minutes. Stops the pod, as SIGTERM does, if its token has become invalid."""
        self._intent = self._intent.model_copy(update=parts)
        if error := self._apply(PROGRESS_TIMEOUT_SECONDS):
            print(f"The status was not written, the next update includes it: {error}", flush=True)

    def result(self, **parts: Any) -> None:
        """Applies parts of the status, and retries for five minutes while the API server is not available.

        Raises Superseded like `progress`, ConnectionError if the status cannot be written, and StopRequested if the
        token of the pod has become invalid."""
        self._intent = self._intent.model_copy(update=parts)
        give_up, pause = time.monotonic() + RESULT_PATIENCE_SECONDS, 1.0
        while error := self._apply(RESULT_TIMEOUT_SECONDS):
            beat()
            if self._refusals.of_the_token and not is_reported():
                raise StopRequested
            if self._refusals.of_the_token or (self._refusals and time.monotonic() + pause > give_up):
                raise Superseded(self._not_let(error))
            if time.monotonic() + pause > give_up:
                raise ConnectionError(f"the status could not be written: {error}")
            print(f"The status was not written, trying again in {pause:.0f} s: {error}", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)

    def condition(self, type: ConditionType, status: bool, reason: str, message: str) -> None:
        """Adds a condition to the next apply."""
        text = "True" if status else "False"
        known = self._intent.condition(type) or self._seen.get(type)
        since = known.last_transition_time if known and known.status == text else self._clock()
        condition = Condition(
            type=type,
            status=text,
            reason=reason,
            message=message[:4096],
            observed_generation=self._job.generation if self._job else None,
            last_transition_time=since,
        )
        others = [c for c in self._intent.conditions or [] if c.type != type]
        self._intent = self._intent.model_copy(update={"conditions": [*others, condition]})

    def _apply(self, timeout: float) -> str | None:
        """Sends one server-side apply. Returns None, or the error if a retry can help."""
        status = without_nulls(json.loads(self._intent.model_dump_json(by_alias=True, exclude_none=True)))
        if self._job is None or self._at_server is None:
            print(f"{self._manager}: {json.dumps(status)}", flush=True)
            return None
        try:
            answer = self._write(self._at_server, status, timeout)
        except urllib.error.HTTPError as error:
            return self._refused(self._job, error)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            self._refusals.clear()
            return f"{type(error).__name__}: {error}"
        self._require_own(answer)
        self._owns = True
        self._refusals.clear()
        _require_under_way(answer)
        self._remember(answer)
        self._remove_earlier(self._at_server, answer, timeout)
        return None

    def _write(self, at_server: JobStatus, status: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Applies the status to the version of the job that is known. Fields that only earlier attempts own are taken
        over. Returns the job. Raises Superseded if another writer owns fields."""
        force = not self._owns
        for _ in range(MOST_VERSIONS):
            version = self._version or self._read_version(at_server, timeout)
            try:
                answer = at_server.apply(status, timeout, self._manager, force, version)
            except urllib.error.HTTPError as error:
                if error.code != 409:
                    raise
                # A conflict without owners is one of the version: the job has changed since it was read.
                owners = _owners_of(error)
                if owners and not self._outranks(owners):
                    others = ", ".join(sorted(owners - {""})) or "unknown"
                    raise Superseded(f"another pod writes this job's status (field manager {others})") from error
                force, self._version = force or bool(owners), None
            else:
                self._version = answer["metadata"].get("resourceVersion")
                return answer
        raise ConnectionError(f"HTTP 409: the job changed {MOST_VERSIONS} times between a read and the apply")

    def _read_version(self, at_server: JobStatus, timeout: float) -> str | None:
        """Returns the job's resourceVersion; None if this pod may not read the job."""
        try:
            job = at_server.read(timeout)
        except urllib.error.HTTPError as error:
            if error.code != 403:
                raise
            return None
        self._require_own(job)
        return str(job["metadata"]["resourceVersion"])

    def _require_own(self, answer: dict[str, Any]) -> None:
        """Raises Superseded if the job in the answer is another one of the same name.

        An apply cannot name the uid of its job, because the API server ignores the metadata of a status. The chart's
        admission policy rejects writes of a pod of an earlier job with this name. Without the policy, this check stops
        such a pod."""
        if self._job and answer["metadata"]["uid"] != self._job.uid:
            raise Superseded(MADE_AGAIN)

    def _outranks(self, managers: set[str]) -> bool:
        """Whether all these field managers are those of earlier attempts."""
        own = attempt_of(self._manager)
        numbers = {attempt_of(manager) for manager in managers}
        return bool(numbers) and own is not None and all(number is not None and number < own for number in numbers)

    def _remove_earlier(self, at_server: JobStatus, answer: dict[str, Any], timeout: float) -> None:
        """Removes the fields of earlier attempts that this attempt does not write. If this fails, the next apply tries
        again."""
        entries = answer["metadata"].get("managedFields", [])
        managers = {entry.get("manager", "") for entry in entries if entry.get("subresource") == "status"}
        for manager in sorted(manager for manager in managers if self._outranks({manager})):
            with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
                self._version = at_server.apply({}, timeout, manager, force=True)["metadata"].get("resourceVersion")

    def _remember(self, answer: dict[str, Any]) -> None:
        """Stores the job's conditions, so that a condition of an earlier attempt keeps its transition time."""
        found = read_status(answer.get("status") or {})
        self._seen = {condition.type: condition for condition in found.conditions or []}

    def _refused(self, job: JobIdentity, error: urllib.error.HTTPError) -> str:
        """Returns the error of the API server if a retry can help. Raises Superseded if it cannot, and RuntimeError if
        the status itself is not valid."""
        text = error.read(2000).decode(errors="replace")
        code, answer = error.code, _status_of(text)
        if code == 404 and answer.get("details", {}).get("name") == job.name:
            raise Superseded("the job was deleted") from error
        if code in (400, 422):
            raise RuntimeError(f"the API server does not accept the status: {text}") from error
        said = f"HTTP {code}: {answer.get('message') or text}"
        allowed = _ONLY_PODS_OF.search(said) if code == 403 else None
        if allowed and allowed[1] != names.child_prefix(job.name, job.uid):
            raise Superseded(MADE_AGAIN) from error
        if code not in REFUSALS:
            self._refusals.clear()
            return said
        self._refusals.add(code)
        if self._refusals.of_the_token and self._owns:
            stop_because(f"The pod lost its access to the API server, as when its ServiceAccount is deleted ({said}).")
        elif self._refusals.of_the_token or self._refusals.of_the_pod:
            raise Superseded(self._not_let(said)) from error
        return said

    def _not_let(self, said: str) -> str:
        seconds = self._refusals.seconds
        return f"the API server has not let this pod write the job's status for {seconds:,.0f} s ({said})"


def _require_under_way(job: dict[str, Any]) -> None:
    """Raises Superseded if the job has ended or is being deleted. The pod must then stop, because it may have a GPU."""
    if "deletionTimestamp" in job["metadata"]:
        raise Superseded("the job is being deleted")
    status = read_status(job.get("status") or {})
    if status.is_over:
        raise Superseded(f"the job has already ended as {status.state}")


def _owners_of(error: urllib.error.HTTPError) -> set[str]:
    """Returns the field managers that own the fields of a conflict; "" for an owner that the answer does not name."""
    causes = _status_of(error.read(CONFLICT_BYTES).decode(errors="replace")).get("details", {}).get("causes", [])
    found = [re.match(r'conflict with "([^"]*)"', str(cause.get("message", ""))) for cause in causes]
    return {match.group(1) if match else "" for match in found}


def _status_of(text: str) -> dict[str, Any]:
    """Returns the meta/v1 Status in an error response, or an empty dictionary for another response, as from a proxy."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def without_nulls(value: Any) -> Any:
    """Returns `value` without null fields. Pydantic writes NaN and infinity as null, because they are not JSON."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
