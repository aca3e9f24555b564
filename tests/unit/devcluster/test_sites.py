"""Every node has names and addresses of its own."""

from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest

from devcluster import Cluster, ClusterError
from devcluster.namespaces import MOST_NODES, POD_RANGE, Site

SITES = [Site(index) for index in range(MOST_NODES)]


def test_names_and_addresses_of_nodes_differ() -> None:
    for part in ("name", "holder", "link", "address", "far_address", "pod_range", "bridge_address", "cgroup"):
        assert len({getattr(site, part) for site in SITES}) == MOST_NODES, part


def test_the_pods_of_all_nodes_share_the_range_of_pods_and_no_address() -> None:
    ranges = [IPv4Network(site.pod_range) for site in SITES]

    assert all(part.subnet_of(IPv4Network(POD_RANGE)) for part in ranges)
    assert not any(a.overlaps(b) for a in ranges for b in ranges if a is not b)
    assert all(ip_address(site.bridge_address) in part for site, part in zip(SITES, ranges, strict=True))


def test_links_have_names_that_the_kernel_accepts() -> None:
    assert all(len(site.link) < 16 for site in SITES)


@pytest.mark.parametrize("nodes", [-1, MOST_NODES + 1])
def test_a_cluster_with_more_nodes_than_there_are_addresses_is_refused(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(ClusterError, match=f"at most {MOST_NODES} nodes, but {nodes} are wanted"):
        Cluster(tmp_path, nodes=nodes)
