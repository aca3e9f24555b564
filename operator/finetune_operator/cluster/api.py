"""The client of the API server. No other module of the operator calls the API server."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol, cast

from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError
from pydantic import Field, TypeAdapter

from finetune_api import names
from finetune_operator.cluster.limits import Bucket
from finetune_operator.observed.facts.pods import Object

TIMEOUT_SECONDS = 30
CHUNK = 200
"""Objects per request of a list. client-go's pager has 500, but Python needs ten times the memory of their text."""
_PATHS = {
    "Job": ("/apis/batch/v1", "jobs"),
    "Pod": ("/api/v1", "pods"),
    "Node": ("/api/v1", "nodes"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Service": ("/api/v1", "services"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Event": ("/api/v1", "events"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    names.JOB_KIND: (f"/apis/{names.API_VERSION}", names.JOBS),
    names.PROFILE_KIND: (f"/apis/{names.API_VERSION}", names.PROFILES),
}
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches"""
_NAMESPACE_TERMINATING = "NamespaceTerminating"
"""The cause in the error of the admission plugin: https://pkg.go.dev/k8s.io/api/core/v1#NamespaceTerminatingCause"""


class ApiError(Exception):
    """The API server refused a request; `status` is the HTTP code, `retry_after` its wish in seconds, if it has one."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after


class NamespaceGoneError(ApiError):
    """No object can be created in this namespace: the namespace is being deleted or does not exist."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata by which an object of a list is compared with another version of it."""

    uid: str
    name: str
    resource_version: Annotated[int, Field(alias="resourceVersion")]
    namespace: str | None = None


class Chunk(NamedTuple):
    """A part of a list of metadata, and the version of the list."""

    metadata: list[Metadata]
    version: int


@dataclass(frozen=True, slots=True)
class _Item:
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class _ListMetadata:
    resource_version: Annotated[int, Field(alias="resourceVersion")]
    start: Annotated[str, Field(alias="continue")] = ""
    """Where the next chunk starts; "" if this is the last one."""


@dataclass(frozen=True, slots=True)
class _List:
    metadata: _ListMetadata
    items: list[_Item] | None = None


_LIST = TypeAdapter(_List)
"""Reads the few fields that count. Most of the text is managedFields, of which Python would make many objects."""


class Api(Protocol):
    """The requests of the operator to the API server. Objects are plain JSON."""

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return the object; None if it does not exist."""

    def events(self, namespace: str, fields: str) -> list[Object]:
        """Return the Events of a namespace that match a field selector."""

    def preferred_version(self, group: str) -> str | None:
        """Return the version of an API group that the API server prefers; None if it does not serve the group."""

    def listed(self, path: str, labels: str) -> list[Object]:
        """Return the objects below a path that match a label selector. For kinds whose version is found out."""

    def metadata(self, kind: str, namespace: str | None, labels: str = "", fields: str = "") -> Iterator[Chunk]:
        """Yield the metadata of the objects of a namespace, or of all, that match the selectors, in chunks."""

    def create(self, body: Object) -> Object | None:
        """Create the object and return it; None if an object of that name exists.

        Raises NamespaceGoneError if the namespace is being deleted."""

    def delete(self, kind: str, name: str, namespace: str) -> None:
        """Delete the object and, in the background, the objects that it owns. Succeed if it does not exist."""

    def apply_status(self, body: Object, manager: str) -> Object:
        """Write the status of a FineTuneJob with server-side apply. Return the FineTuneJob."""

    def may_report(self, namespace: str, account: str) -> bool:
        """Whether this ServiceAccount may write the status of the FineTuneJobs of its namespace."""


class KubernetesApi:
    """The implementation with the official client: its credentials, its TLS, and its pool of connections.

    `observe` is called after each request with its verb, as Kubernetes names it, and the HTTP code."""

    def __init__(
        self,
        connections: int,
        bucket: Bucket | None = None,
        observe: Callable[[str, int], None] = lambda verb, code: None,
    ) -> None:
        settings = client.Configuration()
        try:
            config.load_incluster_config(settings)
        except config.ConfigException:
            config.load_kube_config(client_configuration=settings)
        settings.connection_pool_maxsize = connections
        # The paths are known, so no discovery is needed.
        self._client = DynamicClient(client.ApiClient(settings), discoverer=lambda client, cache: None)
        self._bucket, self._observe = bucket, observe

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        try:
            return self._request("get", _path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def events(self, namespace: str, fields: str) -> list[Object]:
        return cast(list[Object], self._request("list", _path("Event", namespace), field_selector=fields)["items"])

    def preferred_version(self, group: str) -> str | None:
        try:
            return str(self._request("get", f"/apis/{group}")["preferredVersion"]["version"])
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def listed(self, path: str, labels: str) -> list[Object]:
        return cast(list[Object], self._request("list", path, label_selector=labels)["items"])

    def metadata(self, kind: str, namespace: str | None, labels: str = "", fields: str = "") -> Iterator[Chunk]:
        start: str | None = None
        while start != "":
            text = self._text(
                "list",
                _path(kind, namespace),
                label_selector=labels or None,
                field_selector=fields or None,
                limit=CHUNK,
                _continue=start,
                header_params={"Accept": _METADATA_ONLY},
            )
            chunk = _LIST.validate_json(text)
            yield Chunk([item.metadata for item in chunk.items or []], chunk.metadata.resource_version)
            start = chunk.metadata.start

    def create(self, body: Object) -> Object | None:
        try:
            return self._request("create", _path(body["kind"], body["metadata"]["namespace"]), body)
        except ApiError as error:
            if error.status == 409:
                return None
            raise

    def delete(self, kind: str, name: str, namespace: str) -> None:
        try:
            self._request("delete", _path(kind, namespace, name), propagation_policy="Background")
        except ApiError as error:
            if error.status != 404:
                raise

    def apply_status(self, body: Object, manager: str) -> Object:
        return self._request(
            "apply",
            _path(names.JOB_KIND, body["metadata"]["namespace"], body["metadata"]["name"]) + "/status",
            body,
            field_manager=manager,
            force_conflicts="true",
            content_type="application/apply-patch+yaml",
        )

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
        return bool(self._request("create", path, review)["status"]["allowed"])

    def _request(self, verb: str, path: str, body: Object | None = None, **query: Any) -> Object:
        return cast(Object, json.loads(self._text(verb, path, body, **query)))

    def _text(self, verb: str, path: str, body: Object | None = None, **query: Any) -> bytes:
        """Send a request. Return the JSON of the answer."""
        if self._bucket is not None:
            self._bucket.take()
        code = 0
        try:
            answer = self._client.request(
                _METHODS[verb], path, body, serialize=False, _request_timeout=TIMEOUT_SECONDS, **query
            )
            code, text = answer.status, cast(bytes, answer.data)
        except DynamicApiError as error:
            code = error.status
            raise _error(error) from error
        finally:
            self._observe(verb, code)
        return text


_METHODS = {"get": "get", "list": "get", "create": "post", "delete": "delete", "apply": "patch"}


def _path(kind: str, namespace: str | None, name: str | None = None) -> str:
    base, plural = _PATHS[kind]
    return "/".join([base, *(["namespaces", namespace] if namespace else []), plural, *([name] if name else [])])


def _error(error: DynamicApiError) -> ApiError:
    """Return the error of a refusal. Its body is a Status if the API server itself, and no proxy, refused."""
    text = error.body or ""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        shown = text.decode(errors="replace") if isinstance(text, bytes) else text
        return ApiError(error.status, shown[:200], _retry_after(error.headers))
    details = body.get("details") or {}
    causes = {cause.get("reason") for cause in details.get("causes") or []}
    is_gone = error.status == 404 and details.get("kind") == "namespaces"
    kind = NamespaceGoneError if is_gone or _NAMESPACE_TERMINATING in causes else ApiError
    return kind(error.status, str(body.get("message", "")), _retry_after(error.headers))


def _retry_after(headers: Any) -> float | None:
    """Return the seconds of the header Retry-After, which the API server sends with 429."""
    try:
        return float(headers["Retry-After"])
    except (KeyError, TypeError, ValueError):
        return None


def selectors(kind: str) -> Sequence[str]:
    """Return the label selector and the field selector of the watched objects of a kind."""
    if kind in ("Job", "Pod"):
        return names.LABEL_JOB_UID, ""
    if kind in ("ServiceAccount", "RoleBinding"):
        return "", f"metadata.name={names.TRAINER_SERVICE_ACCOUNT}"
    return "", ""
