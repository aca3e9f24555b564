"""`python -m finetune_operator`: run the operator, in a pod or from a shell with the current kubeconfig."""

import argparse
import logging

from finetune_operator.cluster.api import KubernetesApi
from finetune_operator.process import probes
from finetune_operator.process.loop import Workers
from finetune_operator.process.supervise import FAILED, Supervisor, exit_process
from finetune_operator.process.watch import Watches


def main() -> None:
    """Parse the command line and run until a signal or a failure."""
    parser = argparse.ArgumentParser(prog="finetune-operator", description=__doc__)
    parser.add_argument(
        "--health-probe-bind-address",
        metavar="HOST:PORT",
        help="address for /healthz and /readyz, for example 0.0.0.0:8080",
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    arguments = parser.parse_args()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = FAILED
    try:
        workers = Workers(KubernetesApi())
        supervisor = Supervisor([workers, Watches(workers.add)])
        if arguments.health_probe_bind_address:
            probes.serve(arguments.health_probe_bind_address, supervisor.health, supervisor.readiness)
        code = supervisor.run()
    except Exception:
        logging.getLogger(__name__).critical("The operator cannot start or has failed.", exc_info=True)
    finally:
        exit_process(code)


if __name__ == "__main__":
    main()
