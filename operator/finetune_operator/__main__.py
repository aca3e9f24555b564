"""`python -m finetune_operator`: run the operator, in a pod or from a shell with the current kubeconfig."""

import argparse
import gc
import logging
import re
from collections.abc import Sequence

from finetune_operator.cluster.api import KubernetesApi
from finetune_operator.cluster.limits import Bucket
from finetune_operator.cluster.workloads import Workloads
from finetune_operator.process import metrics, probes
from finetune_operator.process.keeper import Keeper
from finetune_operator.process.loop import Workers
from finetune_operator.process.supervise import FAILED, Supervisor, exit_process
from finetune_operator.process.watch import Watches
from finetune_operator.store.store import Store

GARBAGE_THRESHOLD = 10_000
"""New objects of Python after which it looks for garbage. With its default of 700 it goes over all objects so often
that this takes a third of the processor time of a start with 50,000 Kubernetes objects."""
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def main() -> None:
    """Parse the command line and run until a signal or a failure."""
    arguments = _arguments()
    gc.set_threshold(GARBAGE_THRESHOLD)
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = FAILED
    try:
        supervisor = _operator(arguments)
        if arguments.health_probe_bind_address:
            probes.serve(arguments.health_probe_bind_address, supervisor.health, supervisor.readiness)
        code = supervisor.run()
    except Exception:
        logging.getLogger(__name__).critical("The operator cannot start or has failed.", exc_info=True)
    finally:
        exit_process(code)


def _operator(arguments: argparse.Namespace) -> Supervisor:
    """Put the parts together: the watches feed the store, which tells the workers about changes."""
    bucket = Bucket(arguments.api_qps, arguments.api_burst) if arguments.api_qps else None
    api = KubernetesApi(arguments.workers + 1, bucket, metrics.count_request)
    store = Store(lambda key: workers.add(key))
    watches = Watches(store, arguments.namespaces, lambda: keeper.listed())
    keeper = Keeper(api, store, arguments.namespaces, watches.restart)
    workers = Workers(api, store, keeper, arguments.workers, Workloads(api) if arguments.kueue else None)
    metrics.observe(store, workers.queue)
    if arguments.metrics_bind_address:
        metrics.serve(arguments.metrics_bind_address)
    return Supervisor([workers, watches])


def _arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None means that of the process."""
    parser = argparse.ArgumentParser(prog="finetune-operator", description=__doc__)
    parser.add_argument(
        "--namespaces",
        metavar="NAMESPACE,...",
        type=_namespaces,
        default=(),
        help="namespaces whose FineTuneJobs this operator runs, for example tickets,search; default: all namespaces",
    )
    parser.add_argument(
        "--health-probe-bind-address",
        metavar="HOST:PORT",
        help="address for /healthz and /readyz, for example 0.0.0.0:8080",
    )
    parser.add_argument(
        "--metrics-bind-address", metavar="HOST:PORT", help="address for /metrics, for example 0.0.0.0:8081"
    )
    parser.add_argument("--workers", type=int, default=8, help="number of jobs that are decided at the same time")
    parser.add_argument(
        "--api-qps", type=float, default=0, help="requests per second to the API server; 0 means no limit"
    )
    parser.add_argument("--api-burst", type=int, default=100, help="requests at once, if --api-qps sets a limit")
    parser.add_argument(
        "--kueue", action="store_true", help="read Kueue's Workloads, to say in the status what a queued job waits for"
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
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
