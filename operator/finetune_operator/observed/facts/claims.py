"""The relevant fields of a PersistentVolumeClaim."""

from dataclasses import dataclass
from datetime import datetime

from finetune_operator.observed.facts.pods import Object

SHARED = "ReadWriteMany"
WRITABLE = {"ReadWriteOnce", "ReadWriteOncePod", SHARED}
"""Access modes with which a pod can write."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A node to which a volume is attached."""

    node: str
    answers_since: datetime | None = None
    """When the node began to answer; None if it does not answer."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the job's namespace."""

    phase: str
    """Pending, Bound or Lost."""
    access_modes: tuple[str, ...] = ()
    """Those of the volume if the claim is bound, else those that the claim requests."""
    volume: str = ""
    """Name of the PersistentVolume; "" until the claim is bound."""
    attached: Attachment | None = None
    """Where the volume is attached, if that is the node of the last attempt and that one was lost or does not answer.
    Read only if one node at a time can mount the volume."""
    is_leaving: bool = False
    """Whether the claim is being deleted. New pods cannot use it."""

    @classmethod
    def parse(cls, raw: Object) -> "Claim":
        """From the claim's JSON."""
        spec, status = raw.get("spec", {}), raw.get("status", {})
        return cls(
            phase=status.get("phase", "Pending"),
            access_modes=tuple(status.get("accessModes") or spec.get("accessModes") or ()),
            volume=spec.get("volumeName", ""),
            is_leaving="deletionTimestamp" in raw["metadata"],
        )
