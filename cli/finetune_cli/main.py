"""`finetune validate FILE...`: checks FineTuneJob manifests without a cluster and prints problems with file and line.

Unknown fields are errors here. The API server drops them silently if the client does not request strict validation.
"""

import argparse
import sys
from pathlib import Path

from finetune_cli.manifests import problems


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Return the exit status: 0 if no problem was found, else 1."""
    parser = argparse.ArgumentParser(prog="finetune", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    validate = commands.add_parser("validate", help="check manifests without a cluster")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    found = [problem for path in parser.parse_args(arguments).files for problem in problems(path)]
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print("Fields, types, bounds and URIs are valid. For the remaining checks run kubectl apply --dry-run=server.")
    return 1 if found else 0
