"""Requests to a hub that are repeated while it is not available, and that read a file by ranges.

The requests of huggingface_hub itself may wait without a limit: for an answer, and for as long as Retry-After says. A
GPU may be waiting, so the times here are limited."""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.errors import HTTPError as HTTPError  # type: ignore[attr-defined] # of httpx or httpx2
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined] # documented

from finetune_trainer.pod.termination import check_stop

ATTEMPTS = 5
"""Number of requests without any progress after which a request has failed. Also how often a signed address that the
storage refuses is replaced without any progress."""
FIRST_PAUSE_SECONDS = 1.0
"""The pause after the first request without an answer. Each further pause is twice as long."""
READ_SECONDS = 30.0
"""The longest time without any byte of an answer."""
LONGEST_PAUSE_SECONDS = 60.0
"""The longest pause before a request is repeated. A hub that asks for more is not available."""
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_EXPIRED = {400, 401, 403, 404, 410}
"""Answers of a storage to a signed address that is no longer valid."""
Answer = TypeVar("Answer")


class NoRanges(Exception):  # noqa: N818 - `hub_failures` says what it means
    """The hub sent a whole file or nothing although a range was requested."""


class Location:
    """Where a file is: its address at the hub, and the signed address to which the hub has redirected."""

    def __init__(self, url: str, headers: Callable[[], dict[str, str]]) -> None:
        """`headers`: returns the headers for the hub. They have the token, which no other server gets."""
        self.url, self._headers = url, headers
        self._signed: str | None = None

    def request(self) -> tuple[str, dict[str, str]]:
        """Returns the address for the next request, and its headers."""
        return (self._signed, {}) if self._signed else (self.url, self._headers())

    def arrived(self, url: str) -> None:
        """Keeps the address at which a request ended, if the hub has redirected it to another server."""
        if urlsplit(url).netloc != urlsplit(self.url).netloc:
            self._signed = url

    def forget(self, url: str) -> None:
        """Makes the next request go to the hub again, unless another thread has replaced the signed address `url`."""
        if self._signed == url:
            self._signed = None


def patiently(request: Callable[[], Answer]) -> Answer:
    """Returns the result of `request`. Repeats the request while the hub does not answer or is overloaded.

    Raises the error of the last request, or StopRequested."""
    attempt = 0
    while True:
        try:
            return request()
        except HTTPError as error:
            attempt += 1
            pause_or_raise(error, attempt, check_stop)


def read_range(location: Location, start: int, end: int, put: Callable[[int, bytes], None]) -> None:
    """Calls `put` with the position and the content of each part of a file from `start` to `end`, in order. Resumes
    after a cut. Raises the error of the last request, NoRanges, StopRequested, or what `put` raises.

    While there is no content, `put` is called with none, so that it can end the work."""
    position, attempt, renewals = start, 0, 0

    def still_needed() -> None:
        check_stop()
        put(position, b"")

    while position < end:
        still_needed()
        before = position
        url, headers = location.request()
        try:
            for data in _stream(location, url, headers, position, end):
                check_stop()
                put(position, data)
                position, attempt, renewals = position + len(data), 0, 0
            if position == before:
                raise NoRanges
        except HTTPError as error:
            location.forget(url)
            refused = isinstance(error, HfHubHTTPError) and error.response.status_code in _EXPIRED
            # Other threads may have replaced the location's address: what counts is the address of this request.
            if refused and url != location.url and renewals < ATTEMPTS:
                renewals += 1
                continue
            attempt += 1
            pause_or_raise(error, attempt, still_needed)


def _stream(location: Location, url: str, headers: dict[str, str], start: int, end: int) -> Any:
    """Yields the bytes of a file from `start`, without the byte at `end`. `url`, `headers`: from `location.request`."""
    ranged = headers | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=ranged, follow_redirects=True, timeout=READ_SECONDS) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != 206:
            raise NoRanges
        location.arrived(str(answer.url))
        yield from answer.iter_raw()  # as the bytes arrive, so that a cut loses none


def pause_or_raise(error: HTTPError, attempt: int, still_needed: Callable[[], None]) -> None:
    """Waits before request number `attempt` is repeated. Raises `error` if it must not be repeated.

    `still_needed`: is called again and again, and raises an exception that ends the wait."""
    seconds = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in _TRANSIENT:
            raise error
        seconds = asked_pause(error.response.headers) or seconds
    if attempt >= ATTEMPTS or seconds > LONGEST_PAUSE_SECONDS:
        raise error
    print(f"The hub did not answer ({type(error).__name__}). The next request is in {seconds:.0f} s.", flush=True)
    ready = time.monotonic() + seconds
    while time.monotonic() < ready:
        still_needed()
        time.sleep(min(0.5, max(0.0, ready - time.monotonic())))


def asked_pause(headers: Any) -> float | None:
    """Returns the seconds that a hub asks to wait, in Retry-After or in its own header RateLimit; None if it does
    not."""
    if re.fullmatch(r"\d+", after := headers.get("Retry-After", "").strip()):
        return float(after)
    limit = re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None
