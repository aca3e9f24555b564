"""`finetune validate FILE...`: what is wrong with FineTuneJob manifests, by file and line, before they reach a cluster.

A client that does not ask for strict field validation has unknown fields dropped by the API server without a word; here
they are errors.
"""

import argparse
import sys
from pathlib import Path

from finetune_cli.manifests import problems


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(prog="finetune", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    validate = commands.add_parser("validate", help="check manifests without a cluster")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    found = [problem for path in parser.parse_args(arguments).files for problem in problems(path)]
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(
            "Fields, types, bounds and URIs are fine. The API server checks the rest: kubectl apply --dry-run=server."
        )
    return 1 if found else 0
