"""Writes the pod's part of the job's status with server-side apply.

Each apply contains everything written so far, because the API server removes fields that an apply leaves out. The first
apply uses force, and later ones do not, so that a pod that was replaced gets a conflict. The later attempt wins: a
conflict with fields that only earlier attempts own is forced, and any other conflict ends the pod. The fields of
earlier attempts are removed, so that the status never mixes two attempts. A pod also stops with Superseded if its job
has ended or if it is no longer allowed to write. A pod whose token has become invalid stops as after SIGTERM: it
stores a checkpoint, because another attempt has to go on.
"""

import contextlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.bundle import JobIdentity
from finetune_api.status.job import Condition, ConditionType, FineTuneJobStatus, attempt_of
from finetune_api.status.reading import read_status
from finetune_trainer.pod.failure import StopRequested, Superseded
from finetune_trainer.pod.heartbeat import LEAST_SECONDS, beat, quiet_work
from finetune_trainer.pod.refusals import REFUSALS, Refusals
from finetune_trainer.pod.termination import is_reported, stop_because

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PROGRESS_TIMEOUT_SECONDS = 3.0
RESULT_TIMEOUT_SECONDS = 10.0
RESULT_PATIENCE_SECONDS = 300.0
"""How long the pod retries to write a result while the API server is not available."""
_ONLY_PODS_OF = re.compile(r"only the pods (\S+)-\* may write the status of ")
"""How the chart's admission policy begins to refuse a pod of another job, or of an earlier job of the same name."""
CONFLICT_BYTES = 1 << 20
"""Most bytes that are read of an answer about a conflict. It names each field."""


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
        self._job, self._manager, self._service_account, self._clock = job, manager, service_account, clock
        self._server = server or _server_from_environment()
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
        if self._job is None:
            print(f"{self._manager}: {json.dumps(status)}", flush=True)
            return None
        try:
            answer = self._write(self._job, status, timeout)
        except urllib.error.HTTPError as error:
            return self._refused(self._job, error)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            self._refusals.clear()
            return f"{type(error).__name__}: {error}"
        # An apply cannot name the uid of its job, because the API server ignores the metadata of a status. The chart's
        # admission policy rejects writes of a pod of an earlier job with this name. Without the policy, this check
        # stops such a pod.
        if answer["metadata"]["uid"] != self._job.uid:
            raise Superseded(MADE_AGAIN)
        self._owns = True
        self._refusals.clear()
        _require_under_way(answer)
        self._remember(answer)
        self._remove_earlier(self._job, answer, timeout)
        return None

    def _write(self, job: JobIdentity, status: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Applies the status. Fields that only earlier attempts own are taken over. Returns the job. Raises Superseded
        if another writer owns fields."""
        try:
            return self._patch(job, status, timeout, self._manager, force=not self._owns)
        except urllib.error.HTTPError as error:
            # A conflict without owners is one of two writes at the same moment, and can be tried again.
            owners = _owners_of(error) if error.code == 409 else set()
            if not owners:
                raise
            if not self._outranks(owners):
                others = ", ".join(sorted(owners - {""})) or "unknown"
                raise Superseded(f"another pod writes this job's status (field manager {others})") from error
        return self._patch(job, status, timeout, self._manager, force=True)

    def _outranks(self, managers: set[str]) -> bool:
        """Whether all these field managers are those of earlier attempts."""
        own = attempt_of(self._manager)
        numbers = {attempt_of(manager) for manager in managers}
        return bool(numbers) and own is not None and all(number is not None and number < own for number in numbers)

    def _remove_earlier(self, job: JobIdentity, answer: dict[str, Any], timeout: float) -> None:
        """Removes the fields of earlier attempts that this attempt does not write. If this fails, the next apply tries
        again."""
        entries = answer["metadata"].get("managedFields", [])
        managers = {entry.get("manager", "") for entry in entries if entry.get("subresource") == "status"}
        for manager in sorted(manager for manager in managers if self._outranks({manager})):
            with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
                self._patch(job, {}, timeout, manager, force=True)

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

    def _patch(
        self, job: JobIdentity, status: dict[str, Any], timeout: float, manager: str, force: bool
    ) -> dict[str, Any]:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.JOB_KIND,
            "metadata": {"namespace": job.namespace, "name": job.name},
            "status": status,
        }
        request = urllib.request.Request(
            f"{self._server}/apis/{names.API_VERSION}/namespaces/{job.namespace}/{names.JOBS}/{job.name}/status"
            f"?fieldManager={manager}&force={str(force).lower()}",
            data=json.dumps(body).encode(),
            method="PATCH",
            headers={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"} | self._authority(),
        )
        with quiet_work(LEAST_SECONDS), self._opener().open(request, timeout=timeout) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _authority(self) -> dict[str, str]:
        # Read for each request, because the kubelet renews the token.
        token = self._service_account / "token"
        return {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}

    def _opener(self) -> urllib.request.OpenerDirector:
        authority = self._service_account / "ca.crt"
        tls = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None
        # The API server is in the cluster, so a proxy for outgoing traffic must not be used.
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))


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


def _server_from_environment() -> str:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
