"""Counts the requests of the operator from the audit log of the API server.

The policy of the log names the operator's ServiceAccount. So the log has its requests only, and each of them once."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

WRITES = ("create", "update", "patch", "delete", "deletecollection")


def flags(folder: Path, user: str) -> tuple[str, ...]:
    """Writes the audit policy to `folder`. Returns the flags of kube-apiserver that log the requests of `user`."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = [{"level": "Metadata", "users": [user]}, {"level": "None"}]
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
    (folder / "audit-policy.json").write_text(json.dumps(policy))
    log(folder).unlink(missing_ok=True)
    return (
        f"--audit-policy-file={folder}/audit-policy.json",
        f"--audit-log-path={log(folder)}",
        "--audit-log-maxsize=100000",  # in megabytes; the default starts a new file after 100
    )


def log(folder: Path) -> Path:
    """Returns the path of the log whose policy is in `folder`."""
    return folder / "audit.log"


class AuditLog:
    """The requests since a point in time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = 0

    def restart(self) -> None:
        """Counts from now on."""
        self._start = self.size()

    def size(self) -> int:
        """Bytes of the log. The log grows with each request that has ended."""
        return self._path.stat().st_size if self._path.exists() else 0

    def requests(self) -> "Counter[str]":
        """Returns the requests since `restart` by verb and resource, without watches."""
        return count(self._lines())

    def first_write(self) -> float | None:
        """Returns when the first write since `restart` was received, in seconds of time.time. None if there is none."""
        return min(map(_received, filter(_is_write, map(json.loads, self._lines()))), default=None)

    def _lines(self) -> Iterator[str]:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._start)
                yield from (line.decode() for line in file if line.endswith(b"\n"))


def count(lines: Iterable[str]) -> "Counter[str]":
    """Counts audit events by verb and resource, for example `patch finetunejobs/status`.

    A watch is not counted: it is one request for the whole life of the process. A request without a resource, for
    example to /version, is counted by its path. Other requests are counted when they have ended."""
    events = map(json.loads, lines)
    return Counter(
        _name(event) for event in events if event["verb"] != "watch" and event["stage"] in ("ResponseComplete", "Panic")
    )


def writes(requests: "Counter[str]") -> int:
    """Returns how many of the requests write an object. A review of permissions is created but stores nothing."""
    return sum(number for request, number in requests.items() if _writes(request))


def _name(event: dict[str, Any]) -> str:
    target = event.get("objectRef")
    if target is None:
        return f"{event['verb']} {event['requestURI'].partition('?')[0]}"
    return f"{event['verb']} {'/'.join(filter(None, (target['resource'], target.get('subresource'))))}"


def _writes(request: str) -> bool:
    return request.split()[0] in WRITES and not request.endswith("accessreviews")


def _is_write(event: dict[str, Any]) -> bool:
    return _writes(_name(event))


def _received(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
