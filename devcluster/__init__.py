"""A real Kubernetes with one to four nodes on one Linux machine, without Docker and without an image registry.

Use `python -m devcluster up|down|kueue|status|kubectl|helm`, or the class `Cluster`. The modules:

- `cluster`: `Cluster`, what everything else here serves; `up` and `down` read top to bottom.
- `control_plane`, `node`, `storage`: the command lines and files of each component.
- `kueue`: Kueue, which is optional.
- `namespaces`: the closed network the nodes live in.
- `outages`: breaks parts of a running cluster, and mends them.
- `images`: the two development images, which hold nothing and mount the virtual environment.
- `build`, `prerequisites`: what has to be there first, made and installed once.
- `processes`, `progress`: starting, watching and stopping; saying so.
- `kube/`: the Go source of the one program that is every Kubernetes component.
- `kueue/`: the Go module that pins Kueue.
"""

from devcluster.cluster import Cluster
from devcluster.progress import ClusterError

__all__ = ["Cluster", "ClusterError"]
