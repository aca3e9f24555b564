"""The files in LFS, which the storage serves at signed URLs."""

import hmac
import time
from urllib.parse import parse_qs, urlsplit

VALID_SECONDS = 3600


class SignedObjects:
    """Contents by their sha256. Their URLs have a signature and an end."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}
        self._key = b"the key of the signatures"

    def put(self, sha256: str, data: bytes) -> None:
        """Keeps a content under this digest, which may be that of another content."""
        self._contents[sha256] = data

    def path(self, sha256: str) -> str:
        """A signed path with query."""
        until = str(int(time.time()) + VALID_SECONDS)
        return f"/objects/{sha256}?until={until}&signature={self._signature(sha256, until)}"

    def at(self, url: str) -> bytes | None:
        """The content at a signed URL; None if the signature is not valid."""
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        sha256 = parts.path.removeprefix("/objects/")
        until = query.get("until", "0")
        right = hmac.compare_digest(query.get("signature", ""), self._signature(sha256, until))
        return self._contents.get(sha256) if right and int(until) > time.time() else None

    def _signature(self, sha256: str, until: str) -> str:
        return hmac.new(self._key, f"{sha256} {until}".encode(), "sha256").hexdigest()
