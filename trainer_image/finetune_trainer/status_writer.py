"""The pod's part of its job's status, by server-side apply.

Always the writer's full intent: what is not in an apply is removed by the API server, so each carries everything
written so far. The first apply forces, later ones do not: a pod that was replaced is told so by a conflict.
"""

import http.client
import json
import os
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
from finetune_api.status import Condition, ConditionType, FineTuneJobStatus
from finetune_trainer.failure import Superseded

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PROGRESS_TIMEOUT_SECONDS = 3.0
RESULT_TIMEOUT_SECONDS = 10.0
RESULT_PATIENCE_SECONDS = 300.0
"""How long a result is tried again while the API server is away, before the pod gives up."""


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

    @property
    def intent(self) -> FineTuneJobStatus:
        """Everything written so far, which the next apply carries again."""
        return self._intent

    def progress(self, **parts: Any) -> None:
        """Applies parts of the status (fields of FineTuneJobStatus) once, within a few seconds. An API server that is
        away is no reason to stop: the next apply carries these parts too.

        Raises Superseded when another attempt has taken the status over or the job is gone."""
        self._intent = self._intent.model_copy(update=parts)
        if error := self._apply(PROGRESS_TIMEOUT_SECONDS):
            print(f"Status not written, will be with the next: {error}", flush=True)

    def result(self, **parts: Any) -> None:
        """Applies parts of the status and insists: tries again for five minutes while the API server is away.

        Raises Superseded as `progress` does, and ConnectionError when it cannot be written."""
        self._intent = self._intent.model_copy(update=parts)
        give_up, pause = time.monotonic() + RESULT_PATIENCE_SECONDS, 1.0
        while error := self._apply(RESULT_TIMEOUT_SECONDS):
            if time.monotonic() + pause > give_up:
                raise ConnectionError(f"the status could not be written: {error}")
            print(f"Status not written, trying again in {pause:.0f} s: {error}", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)

    def condition(self, type: ConditionType, status: bool, reason: str, message: str) -> None:
        """Puts a condition into what the next apply writes."""
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
        """One server-side apply. Returns why it did not come through, where trying again may help."""
        status = without_nulls(json.loads(self._intent.model_dump_json(by_alias=True, exclude_none=True)))
        if self._job is None:
            print(f"{self._manager}: {json.dumps(status)}", flush=True)
            return None
        try:
            answer = self._patch(self._job, status, timeout)
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            return f"{type(error).__name__}: {error}"
        # No apply can name the uid it is meant for: the API server sets aside all metadata of a status. The chart's
        # admission policy keeps a pod of an earlier job of this name from writing; where that is missing, this ends it.
        if answer["metadata"]["uid"] != self._job.uid:
            raise Superseded("the job was deleted and another created under its name")
        self._owns = True
        self._remember(answer)
        return None

    def _remember(self, answer: dict[str, Any]) -> None:
        """Keeps the conditions the job carries, so that one an earlier attempt wrote keeps its time."""
        found = FineTuneJobStatus.model_validate(answer.get("status") or {})
        self._seen = {condition.type: condition for condition in found.conditions or []}

    def _refused(self, error: urllib.error.HTTPError) -> str:
        text = error.read(2000).decode(errors="replace")
        if error.code == 409:
            raise Superseded("another attempt writes this job's status, or the job was created anew") from error
        if error.code == 404:
            raise Superseded("the job was deleted") from error
        if error.code in (400, 422):
            raise RuntimeError(f"the API server does not accept the status: {text}") from error
        return f"HTTP {error.code}: {text}"

    def _patch(self, job: JobIdentity, status: dict[str, Any], timeout: float) -> dict[str, Any]:
        force = "false" if self._owns else "true"
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.JOB_KIND,
            "metadata": {"namespace": job.namespace, "name": job.name},
            "status": status,
        }
        request = urllib.request.Request(
            f"{self._server}/apis/{names.API_VERSION}/namespaces/{job.namespace}/{names.JOBS}/{job.name}/status"
            f"?fieldManager={self._manager}&force={force}",
            data=json.dumps(body).encode(),
            method="PATCH",
            headers={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"} | self._authority(),
        )
        with self._opener().open(request, timeout=timeout) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _authority(self) -> dict[str, str]:
        # Read each time: the kubelet renews it.
        token = self._service_account / "token"
        return {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}

    def _opener(self) -> urllib.request.OpenerDirector:
        authority = self._service_account / "ca.crt"
        tls = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None
        # The API server is in the cluster: a proxy meant for the way out is not for it.
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))


def without_nulls(value: Any) -> Any:
    """`value` without null fields. Pydantic writes NaN and infinity, which are not JSON, as null."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _server_from_environment() -> str:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
