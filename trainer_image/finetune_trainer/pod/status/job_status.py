"""Reads and applies the status of the pod's job at the API server."""

import json
import os
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.bundle import JobIdentity
from finetune_trainer.pod.liveness.heartbeat import LEAST_SECONDS, quiet_work

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class JobStatus:
    """The status of one job at the API server.

    Its methods raise urllib.error.HTTPError for a refusal, and OSError, http.client.HTTPException or ValueError for an
    answer that does not come or cannot be read."""

    def __init__(self, job: JobIdentity, service_account: Path = SERVICE_ACCOUNT, server: str | None = None) -> None:
        self._job, self._service_account = job, service_account
        path = f"apis/{names.API_VERSION}/namespaces/{job.namespace}/{names.JOBS}/{job.name}/status"
        self._url = f"{server or _server_from_environment()}/{path}"

    def read(self, timeout: float) -> dict[str, Any]:
        """Returns the job."""
        return self._answer(urllib.request.Request(self._url), timeout)

    def apply(
        self, status: dict[str, Any], timeout: float, manager: str, force: bool, version: str | None = None
    ) -> dict[str, Any]:
        """Applies the status as this field manager. Returns the job. `version`: the resourceVersion that the job must
        have; None for any."""
        metadata = {"namespace": self._job.namespace, "name": self._job.name}
        metadata |= {"resourceVersion": version} if version else {}
        body = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "metadata": metadata, "status": status}
        request = urllib.request.Request(
            f"{self._url}?fieldManager={manager}&force={str(force).lower()}",
            data=json.dumps(body).encode(),
            method="PATCH",
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        return self._answer(request, timeout)

    def _answer(self, request: urllib.request.Request, timeout: float) -> dict[str, Any]:
        for name, value in {"Accept": "application/json", **self._authority()}.items():
            request.add_header(name, value)
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


def _server_from_environment() -> str:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
