"""The host memory that a pod may still use: for a copy of a training's state."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
MARGIN = 0.1
"""Share of the free memory that a copy leaves free."""


class _Files(NamedTuple):
    """How a version of cgroups names the files of a group and the lines of its memory.stat."""

    limit: str
    used: str
    cached: tuple[str, str]


VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
VERSION_2 = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))
LIMIT_ABOVE = "hierarchical_memory_limit"
"""Line of memory.stat of version 1: the lowest limit of the group and its ancestors, visible or not."""


def has_room(size: int) -> bool:
    """Returns whether `size` bytes fit into the memory that the pod may still use.

    What the process used at its peak counts as used, because the next step may need as much again."""
    return size <= (1 - MARGIN) * (free_memory() - given_back())


def given_back(status: Path = STATUS) -> int:
    """Returns by how many bytes the memory of this process was larger than now, at its peak."""
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return (int(fields["VmHWM"].split()[0]) - int(fields["VmRSS"].split()[0])) * 1024


def free_memory(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP, meminfo: Path = MEMINFO) -> int:
    """Returns the memory that this process can still get, in bytes: on the node, and below the limit of its cgroup and
    of each ancestor that is visible."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    rooms = (_room(group, files) for group, files in _groups(cgroups, membership))
    return max(0, min([free, *(room for room in rooms if room is not None)]))


def _groups(cgroups: Path, membership: Path) -> Iterator[tuple[Path, _Files]]:
    """Yields the cgroup of this process and its visible ancestors, of both versions.

    In a container the group of the container is the root. Its path can be that of the host, which is not visible."""
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (cgroups / "memory", VERSION_1) if controllers else (cgroups, VERSION_2)
        own = root if ".." in path else root / path.strip("/")  # ".." leads out of the namespace of the container
        yield from ((group, files) for group in (own, *own.parents) if group.is_relative_to(root))


def _room(group: Path, files: _Files) -> int | None:
    """Returns how many bytes the group may still use, or None if it has no limit or is not visible."""
    if not (group / files.limit).exists() or (text := (group / files.limit).read_text().strip()) == "max":
        return None
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    limit = min(int(text), int(statistics.get(LIMIT_ABOVE, text)))
    # Cached files count as used, but the kernel gives their memory back.
    cached = sum(int(statistics.get(name, 0)) for name in files.cached)
    return limit - int((group / files.used).read_text()) + cached
