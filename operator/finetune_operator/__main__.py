"""`python -m finetune_operator`: run the operator, in a pod or from a shell with the current kubeconfig."""

import argparse
import logging

from finetune_operator import watch


def main() -> None:
    """Parse the command line and run until a signal."""
    parser = argparse.ArgumentParser(prog="finetune-operator", description=__doc__)
    parser.add_argument("--liveness", metavar="URL", help="serve the probe there, e.g. http://0.0.0.0:8080/healthz")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    arguments = parser.parse_args()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # the kubelet probes every few seconds
    watch.run(arguments.liveness)


if __name__ == "__main__":
    main()
