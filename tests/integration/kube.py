"""The API server as a test sees it: paths in, JSON out."""

import json
from pathlib import Path
from typing import Any

import requests

from finetune_api import names

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JOBS = f"/apis/{names.API_VERSION}/namespaces/{{}}/{names.JOBS}"
PROFILES = f"/apis/{names.API_VERSION}/{names.PROFILES}"
BATCH_JOBS = "/apis/batch/v1/namespaces/{}/jobs"
PODS = "/api/v1/namespaces/{}/pods"


class RefusedError(Exception):
    """The API server said no; `status` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Kube:
    """One user of the API server: the one of `token`, else that of `kubeconfig`, JSON as devcluster writes it."""

    def __init__(self, kubeconfig: Path, token: str = "") -> None:
        config = json.loads(kubeconfig.read_text())
        self.server: str = config["clusters"][0]["cluster"]["server"]
        self.authority = Path(config["clusters"][0]["cluster"]["certificate-authority"])
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy or CA bundle of this machine is not for a server on loopback
        self._session.verify = str(self.authority)
        self._session.headers["Authorization"] = f"Bearer {token or config['users'][0]['user']['token']}"

    def get(self, path: str, **query: str) -> Object:
        return self._request("GET", path, query=query)

    def find(self, path: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return self.get(path)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    def list(self, path: str, **query: str) -> list[Object]:
        items: list[Object] = self.get(path, **query)["items"]
        return items

    def create(self, path: str, body: Object) -> Object:
        return self._request("POST", path, body, {"fieldValidation": "Strict"})

    def merge(self, path: str, body: Object) -> Object:
        """JSON merge patch."""
        return self._request("PATCH", path, body, {}, MERGE)

    def apply(self, path: str, body: Object) -> Object:
        """Server-side apply that takes over what others manage."""
        query = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"}
        return self._request("PATCH", path, body, query, APPLY)

    def delete(self, path: str, **options: Any) -> None:
        """Its absence is success."""
        try:
            self._request("DELETE", path, {"propagationPolicy": "Background", **options})
        except RefusedError as error:
            if error.status != 404:
                raise

    def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        answer = self._session.request(method, self.server + path, params=query, data=data, headers=headers, timeout=30)
        content: Object = answer.json()
        if not answer.ok:
            raise RefusedError(answer.status_code, content.get("message", answer.text))
        return content
