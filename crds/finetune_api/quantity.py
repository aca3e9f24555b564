"""Amounts of memory and CPU as Kubernetes quantities."""

import re
from decimal import Decimal

UNITS = {
    "n": Decimal("0.000000001"),
    "u": Decimal("0.000001"),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000**power) for power, unit in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{unit: Decimal(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
QUANTITY = re.compile(r"[+]?([0-9]+[.]?[0-9]*|[.][0-9]+)(?:([eE][+-]?0*[0-9]{1,2})|([A-Za-z]*))")


def readable(quantity: str) -> str:
    """Return `quantity`. Raises ValueError as `bytes_of` does.

    For fields: the CRD of a later version may permit more, and a spec whose amounts cannot be read has to say so."""
    _number(quantity)
    return quantity


def bytes_of(quantity: str) -> int:
    """Return the bytes of a quantity that the API server accepts, such as 80Gi, 81559Mi, 24G or 24e9.

    Raises ValueError for anything else."""
    return int(_number(quantity))


def times(count: int, quantity: str) -> str:
    """Return a quantity `count` times. Raises ValueError as `bytes_of` does."""
    return quantity if count == 1 else f"{(count * _number(quantity)).normalize():f}"


def gibibytes(size: float) -> str:
    """Return `size` bytes as a quantity in GiB with one decimal, for example 21.4Gi."""
    return f"{size / 2**30:.1f}Gi"


def _number(quantity: str) -> Decimal:
    match = QUANTITY.fullmatch(quantity)
    if not match or (match[3] or "") not in UNITS:
        raise ValueError(
            f"{quantity!r} is not a Kubernetes quantity: write for example 80Gi for memory or 500m for CPU"
        )
    return Decimal(match[1] + (match[2] or "")) * UNITS[match[3] or ""]
