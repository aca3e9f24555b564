"""The processes of a pod, as the machine of its node sees them."""

from collections.abc import Iterator
from pathlib import Path

from finetune_api import names
from tests.integration.kube import Object


def processes_of(pod: Object, container: str = names.CONTAINER) -> Iterator[int]:
    """Yields the machine's ids of the container's processes, none if it does not run."""
    statuses = pod["status"].get("containerStatuses", [])
    reference = next((c.get("containerID", "") for c in statuses if c["name"] == container), "")
    identity = reference.rpartition("/")[2]
    for cgroups in Path("/proc").glob("[0-9]*/cgroup") if identity else ():
        try:
            if identity in cgroups.read_text():
                yield int(cgroups.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended meanwhile.
