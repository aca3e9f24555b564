"""Amounts of memory as Kubernetes writes them."""

import re
from decimal import Decimal

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def bytes_of(quantity: str) -> int:
    """Bytes of a quantity such as 80Gi, 81559Mi or 24G. Raises ValueError for anything else; exponents and fractions of
    a byte are not amounts of memory anybody writes."""
    match = re.fullmatch("([0-9]+(?:[.][0-9]+)?)([A-Za-z]*)", quantity)
    if not match or match[2] not in UNITS:
        raise ValueError(f"{quantity!r} is no amount of memory: write for example 80Gi or 81559Mi")
    return int(Decimal(match[1]) * UNITS[match[2]])


def gibibytes(size: float) -> str:
    """`size` bytes as a quantity for people, to a tenth of a GiB: 21.4Gi."""
    return f"{size / 2**30:.1f}Gi"
