"""Reads the keys of an S3 service from a mounted Secret. The kubelet updates the files while the pod runs.

The files are read for every request. If the service refuses the keys of a request, the request is sent again when the
files contain new keys. A key rotation during a long upload therefore does not fail the upload.
"""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from botocore.credentials import CredentialProvider, Credentials, ReadOnlyCredentials

KEY_ID, SECRET, TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
REFUSED_KEYS = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "TokenRefreshRequired",
        "InvalidSecurity",
        "Unauthorized",
    }
)
"""Error codes for keys that a service does not know, or that have expired. A missing permission has other codes."""
PATIENCE_SECONDS = 150.0
"""How long a request waits for new keys if the service has accepted keys before. The kubelet mounts a changed Secret
within 90 seconds, so this is enough even if the old keys are deleted as soon as the Secret has the new ones."""
LOOK_AGAIN_SECONDS = 1.0
_VERSIONS_READ = 5


class Keys(NamedTuple):
    """The keys in one version of a Secret."""

    key_id: str
    secret: str
    token: str | None
    """The session token of temporary keys."""


class MountedKeys(Credentials):
    """Credentials for botocore from the folder at which a Secret is mounted. `keys` are its first keys.

    `stopping` returns whether the process must stop. It then does not wait for new keys."""

    def __init__(self, folder: Path, keys: Keys, stopping: Callable[[], bool]) -> None:
        super().__init__(*keys, method="mounted-secret")
        self._folder, self._stopping = folder, stopping
        self._last = keys
        self._accepted = False
        self._signed = threading.local()

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Returns the keys for the next request: the mounted keys, or the last complete ones."""
        keys = self._last = read_keys(self._folder) or self._last
        self._signed.keys = keys  # botocore signs, sends and judges a request in one thread
        return ReadOnlyCredentials(*keys)

    def retry(self, response: tuple[Any, dict[str, Any]] | None, **_: Any) -> float | None:
        """Handles botocore's event needs-retry. Returns 0 to sign and send the request again, or None for no retry."""
        if response is None:
            return None
        code, status = response[1].get("Error", {}).get("Code"), getattr(response[0], "status_code", None)
        if code not in REFUSED_KEYS and status not in (401, 403):
            self._accepted = True
            return None
        # A refused HEAD request has no body and therefore no code: see `s3._head`.
        wait = self._accepted and code in REFUSED_KEYS
        if self._renewed(PATIENCE_SECONDS if wait else 0.0):
            return 0.0
        if wait:
            self._accepted = False  # later requests must not wait for the same keys
        return None

    def _renewed(self, seconds: float) -> bool:
        """Waits up to `seconds` for keys other than those of this thread's request. Returns whether it found some."""
        refused, deadline = getattr(self._signed, "keys", None), time.monotonic() + seconds
        while (found := read_keys(self._folder)) is None or found == refused:
            if time.monotonic() >= deadline or self._stopping():
                return False
            time.sleep(LOOK_AGAIN_SECONDS)
        return True


class MountedKeysProvider(CredentialProvider):
    """Provides one set of credentials to a session of botocore."""

    METHOD = "mounted-secret"

    def __init__(self, keys: MountedKeys) -> None:
        super().__init__()
        self._keys = keys

    def load(self) -> MountedKeys:
        """Returns the credentials."""
        return self._keys


def read_keys(folder: Path) -> Keys | None:
    """Returns the keys in a Secret's folder, or None if the key id or the secret is missing, empty or not plain text.

    The kubelet writes every version of a Secret to a separate folder, changes the link ..data to it, and then deletes
    the earlier folder. All keys are read from one version, and the version is checked again afterwards. A new key is
    therefore never combined with an old secret, and a token is never missed."""
    for _ in range(_VERSIONS_READ):
        version = _version(folder)
        key_id, secret, token = (_text(version / name) for name in (KEY_ID, SECRET, TOKEN))
        if version == _version(folder):
            return Keys(key_id, secret, token) if key_id and secret else None
    return None


def _version(folder: Path) -> Path:
    """Returns the folder of the newest version, or `folder` itself if it is not mounted by the kubelet."""
    link = folder / "..data"
    return link.resolve() if link.is_symlink() else folder


def _text(path: Path) -> str | None:
    """Returns the file's text without white space around it, or None if it cannot be sent in an HTTP header."""
    try:
        text = path.read_bytes().decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[!-~]+", text) else None
