"""CoreDNS as one more process of the control plane: it answers the DNS queries of pods about Services and pods.

It answers at the address of the first node, so that it needs no Service. It knows no other names: the cluster is
closed."""

import urllib.request
from pathlib import Path

from devcluster.control_plane import CONTEXT, ControlPlane
from devcluster.namespaces import NODE_ADDRESS
from devcluster.processes import Processes

NAME = "coredns"
DOMAIN = "cluster.local"
_READY_PORT = 8053
"""The usual port, 8181, is SeaweedFS's."""
_COREFILE = """.:53 {{
    bind {address}
    errors
    ready {address}:{ready}
    kubernetes {domain} in-addr.arpa {{
        kubeconfig {kubeconfig} {context}
        ttl 1
    }}
}}
"""


def start(plane: ControlPlane, processes: Processes, program: Path) -> None:
    """Starts CoreDNS without waiting. `program`: the one that `build.built_coredns` makes."""
    corefile = plane.folder / "Corefile"
    corefile.write_text(
        _COREFILE.format(
            address=NODE_ADDRESS, ready=_READY_PORT, domain=DOMAIN, kubeconfig=plane.kubeconfig, context=CONTEXT
        )
    )
    processes.start(NAME, [*plane.prefix, str(program), "-conf", str(corefile)])


def answers() -> bool:
    """Returns whether CoreDNS has read the Services and pods."""
    try:
        return bool(urllib.request.urlopen(f"http://{NODE_ADDRESS}:{_READY_PORT}/ready", timeout=2).status == 200)
    except OSError:
        return False
