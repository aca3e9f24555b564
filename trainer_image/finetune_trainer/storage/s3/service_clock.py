"""The time of an S3 service, which refuses a request signed at another time than its own (RequestTimeTooSkewed).

A pod on a node whose clock is wrong signs with the time of the service, which is in each of its answers. The AWS SDKs
of other languages do the same; botocore does not.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import auth
from botocore.awsrequest import AWSRequest

WRONG = timedelta(minutes=5)
"""The least difference that is corrected. Services refuse one of 15 minutes. The AWS SDK for JavaScript uses 5 too."""
_AHEAD = "clock-ahead"
_MOST_ATTEMPTS = 3


def now() -> datetime:
    """Returns the time of this machine's clock."""
    return datetime.now(UTC)


class ServiceClock:
    """How far the clock of this machine is `ahead` of the clock of one service. Registered with one client."""

    def __init__(self, where: str) -> None:
        """`where`: names the service in the log."""
        self._where = where
        self.ahead = timedelta(0)

    def before_sign(self, request: AWSRequest, **_: Any) -> None:
        """Handles botocore's event before-sign."""
        request.context[_AHEAD] = self.ahead

    def retry(self, response: tuple[Any, dict[str, Any]] | None, attempts: int, **_: Any) -> float | None:
        """Handles botocore's event needs-retry. Returns 0 to sign and send the request again, or None for no retry."""
        status = getattr(response[0], "status_code", None) if response else None
        if response is None or status not in (400, 403) or attempts >= _MOST_ATTEMPTS:
            return None
        told = _date(response[0].headers.get("date"))
        # A refused HEAD request has no body and therefore no code, so only the difference shows the cause.
        if told is None or abs(now() - told - self.ahead) < WRONG:
            return None
        self.ahead = now() - told
        print(
            f"The clock of this pod's node is {_difference(self.ahead)} the clock of the S3 service at {self._where}. "
            "Requests are signed with the time of the service. Set the clock of the node (NTP).",
            flush=True,
        )
        return 0.0


class _Signer(auth.S3SigV4Auth):
    """Signs with the time of the service."""

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        signed_at = now() - request.context.get(_AHEAD, timedelta(0))
        request.context["timestamp"] = signed_at.strftime(auth.SIGV4_TIMESTAMP)
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
