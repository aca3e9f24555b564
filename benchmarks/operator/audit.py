"""Counts the requests of the operator from the audit log of the API server.

The policy of the log names the operator's ServiceAccount. So the log has its requests only, and each of them once."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

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
        if not self._path.exists():
            return Counter()
        with self._path.open("rb") as file:
            file.seek(self._start)
            return count(line.decode() for line in file if line.endswith(b"\n"))


def count(lines: Iterable[str]) -> "Counter[str]":
    """Counts audit events by verb and resource, for example `patch finetunejobs/status`.

    A watch is not counted: it is one request for the whole life of the process. A request without a resource, for
    example to /version, is counted by its path. Other requests are counted when they have ended."""
    found: Counter[str] = Counter()
    for line in lines:
        event = json.loads(line)
        if event["verb"] == "watch" or event["stage"] not in ("ResponseComplete", "Panic"):
            continue
        target = event.get("objectRef")
        if target is None:
            what = event["requestURI"].partition("?")[0]
        else:
            what = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        found[f"{event['verb']} {what}"] += 1
    return found


def writes(requests: "Counter[str]") -> int:
    """Returns how many of the requests write an object. A review of permissions is created but stores nothing."""
    return sum(
        number
        for request, number in requests.items()
        if request.split()[0] in WRITES and not request.endswith("accessreviews")
    )
