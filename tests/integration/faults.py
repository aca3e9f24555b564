"""What can befall a request on its way to the API server or to S3: a watch, or a share of all requests. The proxies
play it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Harm(StrEnum):
    """What can befall a request that is no watch."""

    REFUSED = "refused with a code"
    CUT = "cut before its answer"
    CUT_WITHIN_REQUEST = "cut within its body"
    CUT_WITHIN_ANSWER = "cut within its answer"
    SLOW = "slow"


@dataclass(frozen=True)
class Asked:
    """What a request asks, before it is passed on. `path`: with its query."""

    method: str
    path: str
    authorization: str = ""

    @property
    def is_watch(self) -> bool:
        return "watch=true" in self.path


@dataclass(frozen=True)
class Trouble:
    """What befalls a `share` of the requests that match. `code`: of a refusal. `seconds`: by which each is slower."""

    harm: Harm
    share: float = 1.0
    code: int = 503
    seconds: float = 0.0
    matches: Callable[[Asked], bool] = lambda asked: not asked.is_watch


class Fault(StrEnum):
    """What can befall a watch, by the stage its connection has reached."""

    CUT_BEFORE_HEADERS = "cut before its headers"
    CUT_AFTER_HEADERS = "cut after its headers"
    CUT_BETWEEN_LINES = "cut between lines"
    CUT_WITHIN_A_LINE = "cut within a line"
    TORN = "ended within a line"
    """By a proxy, as if that were all."""
    STALLED_BEFORE_HEADERS = "stalled before its headers"
    STALLED = "stalled"
    NO_JSON = "of text that is no JSON"
    UNAUTHORIZED = "answered with 401"
    FORBIDDEN = "answered with 403"
    NOT_FOUND = "answered with 404"
    GONE = "answered with 410"
    GONE_EVENT = "told 410 in an event"
    TOO_MANY = "answered with 429"
    FAILED = "answered with 500"
    FAILED_EVENT = "told 500 in an event"


REFUSALS = {
    Fault.UNAUTHORIZED: 401,
    Fault.FORBIDDEN: 403,
    Fault.NOT_FOUND: 404,
    Fault.GONE: 410,
    Fault.TOO_MANY: 429,
    Fault.FAILED: 500,
}
EVENTS = {Fault.GONE_EVENT: 410, Fault.FAILED_EVENT: 500}
STALLS = (Fault.STALLED_BEFORE_HEADERS, Fault.STALLED)
WITHIN_THE_STREAM = (Fault.CUT_BETWEEN_LINES, Fault.CUT_WITHIN_A_LINE, Fault.TORN)
"""The API server answers such a watch: it takes an event to break it off."""


def refusal(code: int) -> Any:
    """The object an API server refuses with."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "message": f"the proxy says {code}",
    }
