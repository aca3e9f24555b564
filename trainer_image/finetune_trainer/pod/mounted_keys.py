"""The keys of an S3 service, from a Secret that the kubelet mounts and renews while the pod runs.

The files are read again for every request. A request that the service refuses because of its keys is sent again once
the files hold other keys, so that a rotation in the middle of a long upload costs nothing.
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
"""Error codes of services that do not know the keys, or no longer. A missing permission is none of these."""
PATIENCE_SECONDS = 150.0
"""How long a request waits for other keys where earlier ones were accepted. The kubelet mounts a changed Secret within
one and a half minutes, so keys that are deleted as soon as their successors are in the Secret cost this at most."""
LOOK_AGAIN_SECONDS = 1.0
_VERSIONS_READ = 5


class Keys(NamedTuple):
    """One version of a Secret's keys."""

    key_id: str
    secret: str
    token: str | None
    """The token of temporary keys."""


class MountedKeys(Credentials):
    """botocore's credentials over the folder a Secret is mounted at, which held `keys` in the beginning.

    `stopping` says whether the process is told to end: then nobody waits for other keys."""

    def __init__(self, folder: Path, keys: Keys, stopping: Callable[[], bool]) -> None:
        super().__init__(*keys, method="mounted-secret")
        self._folder, self._stopping = folder, stopping
        self._last = keys
        self._accepted = False
        self._signed = threading.local()

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys to sign the next request with: what is mounted now, or the last whole pair that was."""
        keys = self._last = read_keys(self._folder) or self._last
        self._signed.keys = keys  # botocore signs, sends and judges a request in one thread
        return ReadOnlyCredentials(*keys)

    def retry(self, response: tuple[Any, dict[str, Any]] | None, **_: Any) -> float | None:
        """Handler of botocore's event needs-retry: 0 to sign the request again at once, None to leave it as it is."""
        if response is None:
            return None
        code, status = response[1].get("Error", {}).get("Code"), getattr(response[0], "status_code", None)
        if code not in REFUSED_KEYS and status not in (401, 403):
            self._accepted = True
            return None
        # The refusal of a HEAD has no body, so it names no code: see `s3._head`.
        wait = self._accepted and code in REFUSED_KEYS
        if self._renewed(PATIENCE_SECONDS if wait else 0.0):
            return 0.0
        if wait:
            self._accepted = False  # no later request waits for the same keys
        return None

    def _renewed(self, seconds: float) -> bool:
        """Whether other keys than those of this thread's request are mounted, within `seconds`."""
        refused, deadline = getattr(self._signed, "keys", None), time.monotonic() + seconds
        while (found := read_keys(self._folder)) is None or found == refused:
            if time.monotonic() >= deadline or self._stopping():
                return False
            time.sleep(LOOK_AGAIN_SECONDS)
        return True


class MountedKeysProvider(CredentialProvider):
    """Gives botocore's session one set of credentials and no other."""

    METHOD = "mounted-secret"

    def __init__(self, keys: MountedKeys) -> None:
        super().__init__()
        self._keys = keys

    def load(self) -> MountedKeys:
        """The credentials."""
        return self._keys


def read_keys(folder: Path) -> Keys | None:
    """The keys a Secret's folder holds; None where one of the two is missing, empty or not plain text.

    The kubelet puts every version of a Secret into a folder of its own, points the link ..data at it, and then removes
    the earlier folder. All keys are read from one version, which is still there afterwards: a new key never comes with
    an old secret, and a token is never missed."""
    for _ in range(_VERSIONS_READ):
        version = _version(folder)
        key_id, secret, token = (_text(version / name) for name in (KEY_ID, SECRET, TOKEN))
        if version == _version(folder):
            return Keys(key_id, secret, token) if key_id and secret else None
    return None


def _version(folder: Path) -> Path:
    """The folder of the newest version; the Secret's own where it is no mount."""
    link = folder / "..data"
    return link.resolve() if link.is_symlink() else folder


def _text(path: Path) -> str | None:
    """The file's text without white space around it; None where it is no value that can stand in a header."""
    try:
        text = path.read_bytes().decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[!-~]+", text) else None
