"""How long the API server may refuse a pod before the pod ends."""

import time

REFUSALS = (401, 403, 404)
"""Codes with which the API server refuses a pod. A 404 that does not name the job says that the server does not know
FineTuneJobs."""
PATIENCE_SECONDS = 300.0
"""How long it may refuse with any of these codes. A RoleBinding that was deleted is created again, and the resources of
a restarted server need some time to become available."""
TOKEN_PATIENCE_SECONDS = 90.0
"""How long it may refuse the token (401). The token of a deleted ServiceAccount or pod has the uid of the deleted
object, so it is never valid again, also after the ServiceAccount was created again. The kubelet mounts a token of the
new ServiceAccount only when it renews the old token: up to 48 minutes later. Other causes are over sooner. A kubelet
that was late renews an expired token within 90 s, and the pod reads the mounted token for each request. A starting API
server refuses tokens for some seconds."""


class Refusals:
    """The refusals of a pod since it was last let in."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._token_since: float | None = None
        self._last = 0.0

    def __bool__(self) -> bool:
        return self._since is not None

    def clear(self) -> None:
        """Forgets the refusals: the server has given another answer."""
        self._since = self._token_since = None

    def add(self, code: int) -> None:
        """Counts a refusal with this code, which is one of REFUSALS."""
        self._last = now = time.monotonic()
        self._since = now if self._since is None else self._since
        if code != 401:
            self._token_since = None
        elif self._token_since is None:
            self._token_since = now

    @property
    def seconds(self) -> float:
        """Time from the first refusal to the last one."""
        return 0.0 if self._since is None else self._last - self._since

    @property
    def of_the_pod(self) -> bool:
        """Whether the pod was refused for so long that it will not be let in again."""
        return self.seconds >= PATIENCE_SECONDS

    @property
    def of_the_token(self) -> bool:
        """Whether the token was refused for so long that it is not valid any more."""
        return self._token_since is not None and self._last - self._token_since >= TOKEN_PATIENCE_SECONDS
