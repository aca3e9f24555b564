"""The relevant fields of a PersistentVolumeClaim."""

from dataclasses import dataclass

from finetune_operator.observed.pods import Object

SHARED = "ReadWriteMany"
WRITABLE = {"ReadWriteOnce", "ReadWriteOncePod", SHARED}
"""Access modes with which a pod can write."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the job's namespace."""

    phase: str
    """Pending, Bound or Lost."""
    access_modes: tuple[str, ...] = ()
    """Those of the volume if the claim is bound, else those that the claim requests."""
    volume: str = ""
    """Name of the PersistentVolume; "" until the claim is bound."""
    attached_to: tuple[str, ...] = ()
    """Names of the nodes to which the volume is attached. Read only if one node at a time can mount it, and an
    attempt has lost its node."""
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
