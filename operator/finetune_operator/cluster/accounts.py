"""Whether a tenant's own ServiceAccount exists and may write the status of its jobs. Read live, and remembered."""

import time
from threading import Lock
from typing import NamedTuple

from finetune_operator.cluster.api import Api

REMEMBER_SECONDS = 60.0
"""How long a good answer counts. A bad one does not count at all: the tenant may have mended it."""


class Standing(NamedTuple):
    """State of a ServiceAccount."""

    exists: bool
    may_report: bool


GOOD = Standing(exists=True, may_report=True)


class Accounts:
    """The tenants' own ServiceAccounts. Safe to use from several threads."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._good: dict[tuple[str, str], float] = {}
        self._lock = Lock()

    def standing(self, namespace: str, account: str) -> Standing:
        """Return the state of this ServiceAccount."""
        now = time.monotonic()
        with self._lock:
            self._good = {key: until for key, until in self._good.items() if until > now}
            if (namespace, account) in self._good:
                return GOOD
        exists = self._api.get("ServiceAccount", account, namespace) is not None
        found = Standing(exists, self._api.may_report(namespace, account))
        if found == GOOD:
            with self._lock:
                self._good[namespace, account] = now + REMEMBER_SECONDS
        return found
