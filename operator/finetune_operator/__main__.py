"""`python -m finetune_operator`: run the operator, in a pod or from a shell with the current kubeconfig."""

import argparse
import logging
import re
from collections.abc import Sequence

from finetune_operator.cluster.api import KubernetesApi
from finetune_operator.process import probes
from finetune_operator.process.loop import Workers
from finetune_operator.process.supervise import FAILED, Supervisor, exit_process
from finetune_operator.process.watch import Watches

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def main() -> None:
    """Run until a signal or a failure."""
    arguments = _arguments()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = FAILED
    try:
        workers = Workers(KubernetesApi(arguments.namespaces))
        supervisor = Supervisor([workers, Watches(workers.add, arguments.namespaces)])
        if arguments.health_probe_bind_address:
            probes.serve(arguments.health_probe_bind_address, supervisor.health, supervisor.readiness)
        code = supervisor.run()
    except Exception:
        logging.getLogger(__name__).critical("The operator cannot start or has failed.", exc_info=True)
    finally:
        exit_process(code)


def _arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None means that of the process."""
    parser = argparse.ArgumentParser(prog="finetune-operator", description=__doc__)
    parser.add_argument(
        "--health-probe-bind-address",
        metavar="HOST:PORT",
        help="address for /healthz and /readyz, for example 0.0.0.0:8080",
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument(
        "--namespaces",
        metavar="NAMESPACE,...",
        type=_namespaces,
        default=(),
        help="namespaces whose FineTuneJobs this operator runs, for example tickets,search; default: all namespaces",
    )
    return parser.parse_args(command_line)


def _namespaces(text: str) -> tuple[str, ...]:
    """Parse names of namespaces. kopf would read other text as a pattern."""
    namespaces = tuple(text.split(","))
    for namespace in namespaces:
        if not _NAMESPACE.fullmatch(namespace):
            raise argparse.ArgumentTypeError(f"{namespace!r} is not the name of a namespace")
        if namespaces.count(namespace) > 1:
            raise argparse.ArgumentTypeError(f"the namespace {namespace!r} is named twice")
    return namespaces


if __name__ == "__main__":
    main()
