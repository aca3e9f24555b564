"""The time of an S3 service, which refuses a request signed at another time than its own (RequestTimeTooSkewed).

A pod on a node whose clock is wrong signs with the time of the service, which is in each of its answers. The AWS SDKs
of other languages do the same; botocore does not.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import auth
from botocore.awsrequest import AWSRequest

WRONG = timedelta(minutes=5)
"""The least difference that is corrected. Services refuse one of 15 minutes. The AWS SDK for JavaScript uses 5 too."""
_CLOCK, _AHEAD = "service-clock", "clock-ahead"
"""What the context of a request has: the clock of its service, and how far ahead of it this machine's clock was, as far
as that was known when the request was signed."""
_MOST_ATTEMPTS = 3


def now() -> datetime:
    """Returns the time of this machine's clock."""
    return datetime.now(UTC)


class ServiceClock:
    """How far the clock of this machine is `ahead` of the clock of one service. Registered with one client."""

    def __init__(self, where: str, headers: Callable[[], Mapping[str, str]]) -> None:
        """`where`: names the service in the log. `headers`: asks the service, and returns the headers of its answer;
        none if it does not answer."""
        self._where, self._headers = where, headers
        self.ahead = timedelta(0)

    def time(self) -> datetime:
        """Returns the time of the service, as far as it is known."""
        return now() - self.ahead

    def ask(self) -> None:
        """Asks the service for its time."""
        if told := _date(self._headers().get("date")):
            self._learn(told)

    def before_sign(self, request: AWSRequest, **_: Any) -> None:
        """Handles botocore's event before-sign."""
        request.context[_CLOCK] = self

    def retry(
        self, response: tuple[Any, dict[str, Any]] | None, attempts: int, request_dict: dict[str, Any], **_: Any
    ) -> float | None:
        """Handles botocore's event needs-retry. Returns 0 to sign and send the request again, or None for no retry."""
        status = getattr(response[0], "status_code", None) if response else None
        if response is None or status not in (400, 403) or attempts >= _MOST_ATTEMPTS:
            return None
        told = _date(response[0].headers.get("date"))
        # A refused HEAD request has no body and therefore no code, so only the difference shows the cause. It is that
        # of the signature: another thread may have learnt the time meanwhile.
        if told is None or abs(now() - request_dict["context"].get(_AHEAD, timedelta(0)) - told) < WRONG:
            return None
        self._learn(told)
        return 0.0

    def _learn(self, told: datetime) -> None:
        """Takes over the time of the service if it differs from what was known."""
        if abs(self.time() - told) < WRONG:
            return
        self.ahead = now() - told
        print(
            f"The clock of this pod's node is {_difference(self.ahead)} the clock of the S3 service at {self._where}. "
            "Requests are signed with the time of the service. Set the clock of the node (NTP).",
            flush=True,
        )


class _Signer(auth.S3SigV4Auth):
    """Signs with the time of the service."""

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        clock = request.context.get(_CLOCK)
        ahead = request.context[_AHEAD] = clock.ahead if clock else timedelta(0)
        request.context["timestamp"] = (now() - ahead).strftime(auth.SIGV4_TIMESTAMP)
        super()._modify_request_before_signing(request)  # type: ignore[misc] # the stubs lack it


auth.AUTH_TYPE_MAPS["s3v4"] = _Signer  # botocore has no other way to change the time of a signature


def _date(header: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _difference(ahead: timedelta) -> str:
    minutes = round(abs(ahead) / timedelta(minutes=1))
    return f"{minutes} minutes {'ahead of' if ahead > timedelta(0) else 'behind'}"
