"""Ports for servers that start later stay free until then."""

import socket
from pathlib import Path

import pytest

from devcluster import ports
from devcluster.ports import free_ports
from devcluster.progress import ClusterError


def test_they_are_different_and_no_connection_takes_them() -> None:
    first, last = map(int, ports.EPHEMERAL.read_text().split())

    found = free_ports(50)

    assert len(set(found)) == 50
    assert [port for port in found if first <= port <= last] == []


def test_a_port_in_use_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_ports(2)
    monkeypatch.setattr(ports, "ALLOWED", [taken, free])
    with socket.socket() as server:
        server.bind(("127.0.0.1", taken))

        assert free_ports(1) == [free]
        with pytest.raises(ClusterError, match="Only 1 ports are free on loopback, and 2 are needed"):
            free_ports(2)


def test_where_connections_may_take_every_port_one_of_them_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "range").write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "range")

    assert len(free_ports(1)) == 1
