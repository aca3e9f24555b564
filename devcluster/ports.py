"""Finds ports for servers on loopback."""

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from devcluster.progress import ClusterError

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The first and the last port that Linux gives to connections by itself."""
ALLOWED = range(10_000, 2**16)


def free_ports(count: int) -> list[int]:
    """Returns `count` unused ports on loopback, for servers that start later. Raises ClusterError if there are too few.

    A connection could take a port of the ephemeral range before the server starts, or while it is down between two
    starts. Ports of that range are used only if there are no others."""
    first, last = map(int, EPHEMERAL.read_text().split())
    outside = [port for port in ALLOWED if not first <= port <= last] or list(ALLOWED)
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(outside, len(outside)):
            if len(found) == count:
                break
            with suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    if len(found) < count:
        raise ClusterError(f"Only {len(found)} ports are free on loopback, and {count} are needed.")
    return found
