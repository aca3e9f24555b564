"""The client of the API server. No other module of the operator calls the API server."""

import json
import logging
from collections.abc import Collection, Iterator
from typing import Any, Protocol, cast

from kubernetes import client, config

from finetune_api import names
from finetune_operator.observed.pods import Object

TIMEOUT_SECONDS = 30
_PATHS = {
    "Job": ("/apis/batch/v1", "jobs"),
    "Pod": ("/api/v1", "pods"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Event": ("/api/v1", "events"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    names.JOB_KIND: (f"/apis/{names.API_VERSION}", names.JOBS),
    names.PROFILE_KIND: (f"/apis/{names.API_VERSION}", names.PROFILES),
}

_NAMESPACE_TERMINATING = "NamespaceTerminating"
"""The cause in the error of the admission plugin: https://pkg.go.dev/k8s.io/api/core/v1#NamespaceTerminatingCause"""


logger = logging.getLogger(__name__)


class ApiError(Exception):
    """The API server refused a request; `status` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class NamespaceGoneError(ApiError):
    """No object can be created in this namespace: the namespace is being deleted or does not exist."""


class Api(Protocol):
    """The requests of the operator to the API server. Objects are plain JSON."""

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return the object; None if it does not exist."""

    def list(
        self, kind: str, namespace: str | None = None, selector: str | None = None, fields: str | None = None
    ) -> list[Object]:
        """Return the objects of one namespace, or of all that the operator serves, that match a label selector and a
        field selector."""

    def create(self, body: Object) -> bool:
        """Create the object. Return False if an object of that name exists.

        Raises NamespaceGoneError if the namespace is being deleted."""

    def delete(self, kind: str, name: str, namespace: str) -> None:
        """Delete the object and, in the background, the objects that it owns. Succeed if it does not exist."""

    def apply_status(self, body: Object, manager: str) -> None:
        """Write the status of a FineTuneJob with server-side apply."""

    def may_report(self, namespace: str, account: str) -> bool:
        """Whether this ServiceAccount may write the status of the FineTuneJobs of its namespace."""


class KubernetesApi:
    """The implementation with the connection, credentials and retries of the official client.

    The operator serves `namespaces`; if there are none, it serves all namespaces of the cluster."""

    def __init__(self, namespaces: Collection[str] = ()) -> None:
        self._namespaces = namespaces
        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        self._client = client.ApiClient()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        try:
            return self._request("GET", _path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, kind: str, namespace: str | None = None, selector: str | None = None, fields: str | None = None
    ) -> list[Object]:
        if namespace is None and self._namespaces:
            return [*self._served(kind, selector, fields)]
        query = [(name, value) for name, value in (("labelSelector", selector), ("fieldSelector", fields)) if value]
        return cast(list[Object], self._request("GET", _path(kind, namespace), query=query)["items"])

    def _served(self, kind: str, selector: str | None, fields: str | None) -> Iterator[Object]:
        """Yield the objects of every served namespace.

        A namespace and the operator's Role in it are deleted together. Such a namespace is skipped."""
        for namespace in self._namespaces:
            try:
                yield from self.list(kind, namespace, selector, fields)
            except ApiError as error:
                if error.status != 403:
                    raise
                logger.warning("The namespace %s is skipped: %s", namespace, error.message)

    def create(self, body: Object) -> bool:
        try:
            self._request("POST", _path(body["kind"], body["metadata"]["namespace"]), body)
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    def delete(self, kind: str, name: str, namespace: str) -> None:
        try:
            self._request("DELETE", _path(kind, namespace, name), query=[("propagationPolicy", "Background")])
        except ApiError as error:
            if error.status != 404:
                raise

    def apply_status(self, body: Object, manager: str) -> None:
        path = _path(names.JOB_KIND, body["metadata"]["namespace"], body["metadata"]["name"]) + "/status"
        query = [("fieldManager", manager), ("force", "true")]
        self._request("PATCH", path, body, query, "application/apply-patch+yaml")

    def may_report(self, namespace: str, account: str) -> bool:
        # The groups of a pod's token, see https://kubernetes.io/docs/reference/access-authn-authz/authentication
        groups = ["system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
        group, _, version = names.API_VERSION.partition("/")
        resource = {"group": group, "version": version, "resource": names.JOBS, "subresource": "status"}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "LocalSubjectAccessReview",
            "metadata": {"namespace": namespace},
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "groups": groups,
                "resourceAttributes": {**resource, "namespace": namespace, "verb": "patch"},
            },
        }
        path = f"/apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews"
        answer = self._request("POST", path, review)
        return bool(answer["status"]["allowed"])

    def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: Any = (),
        content_type: str = "application/json",
    ) -> Object:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        request = self._client.param_serialize(
            method, path, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        response = self._client.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
        text = response.read()
        if not 200 <= response.status < 300:
            raise _error(response.status, text)
        return cast(Object, json.loads(text))


def _path(kind: str, namespace: str | None, name: str | None = None) -> str:
    base, plural = _PATHS[kind]
    return "/".join([base, *(["namespaces", namespace] if namespace else []), plural, *([name] if name else [])])


def _error(status: int, text: bytes) -> ApiError:
    """Return the error of a refusal. Its body is a Status if the API server itself, and no proxy, refused."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return ApiError(status, text.decode(errors="replace")[:200])
    details = body.get("details") or {}
    causes = {cause.get("reason") for cause in details.get("causes") or []}
    is_gone = status == 404 and details.get("kind") == "namespaces"
    kind = NamespaceGoneError if is_gone or _NAMESPACE_TERMINATING in causes else ApiError
    return kind(status, str(body.get("message", "")))
