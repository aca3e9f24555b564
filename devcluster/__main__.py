"""The command `python -m devcluster build|up|down|kueue|status|kubectl|helm`."""

import argparse
import os
import sys

from devcluster.build import KUBERNETES_VERSION, built, built_coredns, built_kueue
from devcluster.cluster import Cluster
from devcluster.progress import ClusterError, console, step


def main() -> int:
    """Runs the command and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m devcluster", description="A real local Kubernetes.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the components, once for each version; up also does this")
    build.add_argument("--kueue", action="store_true", help="build Kueue as well, which is optional")
    up = commands.add_parser("up", help="start the cluster, if it is not running")
    up.add_argument("--nodes", type=int, default=1, help="number of nodes, 1 to 4 (default: 1)")
    commands.add_parser("down", help="stop the cluster and delete everything except its logs")
    commands.add_parser("kueue", help="start Kueue in the running cluster; it stops with the cluster")
    commands.add_parser("status", help="list the running components")
    for tool in ("kubectl", "helm"):
        commands.add_parser(tool, help=f"run {tool} for the cluster", add_help=False)
    arguments, rest = parser.parse_known_args()
    try:
        cluster = Cluster(nodes=getattr(arguments, "nodes", 1))
        match arguments.command:
            case "build":
                built()
                built_coredns()
                if arguments.kueue:
                    built_kueue()
            case "up":
                cluster.up()
                console.print(f"  ready: export KUBECONFIG={cluster.kubeconfig}")
            case "down":
                with step("stopping the local cluster"):
                    cluster.down()
            case "kueue":
                cluster.start_kueue()
            case "status":
                return _status(cluster)
            case tool:
                os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
                kube = str(built() / "kube")
                os.execv(kube, [kube, tool, *rest])
    except ClusterError as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True, markup=True)
        return 1
    return 0


def _status(cluster: Cluster) -> int:
    components = cluster.components()
    if not components:
        console.print("  the local cluster is not running")
        return 1
    for name, pid in components.items():
        console.print(f"  {name:<26} {f'process {pid}' if pid else '[red]not running[/], see its log'}")
    console.print(f"  Kubernetes {KUBERNETES_VERSION}, S3 at {cluster.s3_endpoint}, logs in {cluster.logs}")
    console.print(f"  export KUBECONFIG={cluster.kubeconfig}")
    return 0 if cluster.is_up else 1


if __name__ == "__main__":
    sys.exit(main())
