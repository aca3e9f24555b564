"""Amounts of memory as Kubernetes writes them."""

import re
from decimal import Decimal

UNITS = {
    "m": Decimal("0.001"),
    **{unit: Decimal(1000**power) for power, unit in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{unit: Decimal(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
QUANTITY = re.compile(r"[+]?([0-9]+[.]?[0-9]*|[.][0-9]+)(?:([eE][+-]?[0-9]{1,2})|([A-Za-z]*))")


def bytes_of(quantity: str) -> int:
    """Bytes of a quantity such as 80Gi, 81559Mi, 24G or 24e9: whatever the API server takes. Raises ValueError for
    anything else."""
    match = QUANTITY.fullmatch(quantity)
    if not match or (match[3] or "") not in UNITS:
        raise ValueError(f"{quantity!r} is no amount of memory: write for example 80Gi or 81559Mi")
    return int(Decimal(match[1] + (match[2] or "")) * UNITS[match[3] or ""])


def gibibytes(size: float) -> str:
    """`size` bytes as a quantity for people, to a tenth of a GiB: 21.4Gi."""
    return f"{size / 2**30:.1f}Gi"
