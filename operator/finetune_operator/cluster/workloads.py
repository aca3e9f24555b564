"""Reads Kueue's Workload of a suspended Job, at the version of Kueue's API that the cluster prefers."""

import logging
from threading import Lock

from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed.causes.workloads import UNKNOWN, Hold, hold_of
from finetune_operator.observed.facts.pods import Object

GROUP = "kueue.x-k8s.io"
_LABEL_JOB_UID = f"{GROUP}/job-uid"
"""Kueue's own label of a Workload: uid of its Job."""

logger = logging.getLogger(__name__)


class Workloads:
    """The Workloads of the operator's Jobs. Safe to use from several threads."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._version: str | None = None
        self._trouble = ""
        self._lock = Lock()

    def hold(self, namespace: str, uid: str, queue: str) -> Hold:
        """Return why Kueue holds back the Job `uid`, which has this queue.

        This only explains why a Job waits, so an error is logged and does not stop the decision."""
        try:
            version = self._version or self._api.preferred_version(GROUP)
            found = self._newest(version, namespace, uid) if version else None
        except ApiError as error:
            self._note(None, f"{error.status}: {error.message}")
            return UNKNOWN
        self._note(version, "" if version else f"the API server does not serve {GROUP}")
        return hold_of(found, queue) if version else UNKNOWN

    def _newest(self, version: str, namespace: str, uid: str) -> Object | None:
        """Return the newest Workload that this Job owns. A tenant may create others with the same label."""
        path = f"/apis/{GROUP}/{version}/namespaces/{namespace}/workloads"
        found = self._api.listed(path, f"{_LABEL_JOB_UID}={uid}")
        mine = [item for item in found if _is_owned_by(item, uid)]
        return max(mine, key=lambda item: str(item["metadata"]["creationTimestamp"]), default=None)

    def _note(self, version: str | None, trouble: str) -> None:
        """Remember the version, or forget it after an error: an upgrade of Kueue can end a version. Log it once."""
        with self._lock:
            is_new = trouble not in ("", self._trouble)
            self._version, self._trouble = version, trouble
        if is_new:
            logger.warning(
                "Kueue's Workloads cannot be read, so the status does not say what a Job waits for: %s", trouble
            )


def _is_owned_by(item: Object, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences", []))
