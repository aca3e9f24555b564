"""The command `python -m examples.demo up|shell|down` behind `make demo`, `make demo-shell` and `make demo-down`."""

import argparse
import sys

from rich.console import Console
from rich.markup import escape

from devcluster import Cluster, ClusterError
from devcluster.progress import step
from examples.demo.install import install_operator
from examples.demo.run import run
from examples.demo.shell import open_shell
from examples.demo.target import (
    FOLDER,
    NAMESPACE,
    SYSTEM_NAMESPACE,
    Target,
    current_target,
    is_local,
    local_target,
    running_target,
)

console = Console(highlight=False)


def main() -> int:
    """Runs the command and returns the exit status.

    $CLUSTER chooses the cluster: `local` (default) starts one on this machine, `current` uses kubectl's context."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="A FineTuneJob from end to end.")
    parser.add_argument("command", choices=["up", "shell", "down"])
    options = parser.parse_args()
    try:
        local = is_local()
        match options.command:
            case "up":
                return run(lambda: _with_operator(local), console)
            case "shell":
                return open_shell(running_target(), FOLDER)
            case _:
                return down(local)
    except ClusterError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted. The cluster and the job still run. Inspect them with `make demo-shell`.")
        console.print("Delete them with `make demo-down`.")
        return 130


def down(local: bool) -> int:
    """Deletes everything that the demo started. Returns the exit status."""
    if local:
        with step("stopping the local cluster"):
            Cluster().down()
        return 0
    target = current_target()
    with step(f"deleting the namespace {NAMESPACE}"):
        target.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    command = f"helm uninstall {target.release} --namespace {SYSTEM_NAMESPACE}"
    console.print(f"  The operator is still installed. To remove it, run: {command}", soft_wrap=True)
    return 0


def _with_operator(local: bool) -> Target:
    """Returns the cluster with the operator installed. Starts the local cluster if `local`."""
    target = _local_up() if local else current_target()
    with step("installing the operator's chart"):
        install_operator(target, FOLDER / "values.json")
    return target


def _local_up() -> Target:
    cluster = Cluster()
    if cluster.is_up:
        console.print("  the local cluster is already running")
    cluster.up()
    return local_target(cluster)


if __name__ == "__main__":
    sys.exit(main())
