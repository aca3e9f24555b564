"""`s3 ls URI` and `s3 cp FROM TO` in the demo's shell: rows of one's own into the demo's S3, results out of it."""

import argparse
import sys
from pathlib import Path

from devcluster import ClusterError
from examples.demo.store import Store
from examples.demo.target import running_target


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="s3", description="The demo's S3 service.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="list what URI begins").add_argument("uri", metavar="URI")
    copy = commands.add_parser("cp", help="copy one file to S3 (its bucket is made), or a file or folder/ from S3")
    copy.add_argument("source", metavar="FROM")
    copy.add_argument("target", metavar="TO")
    options = parser.parse_args()
    try:
        store = Store(running_target())
        if options.command == "ls":
            for uri, size in store.list(options.uri):
                print(f"{size:>14,}  {uri}")
        elif options.source.startswith("s3://"):
            download(store, options.source, Path(options.target))
        else:
            upload(store, Path(options.source), options.target)
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def upload(store: Store, file: Path, uri: str) -> None:
    """One file, to `uri`, or under its own name where that ends with a slash."""
    if not uri.startswith("s3://"):
        raise ClusterError(f"one of the two has to be in S3: {uri} is no s3://BUCKET/KEY.")
    uri = f"{uri}{file.name}" if uri.endswith("/") else uri
    store.make_bucket(uri)
    store.write(uri, file.read_bytes())
    print(f"{file} -> {uri}")


def download(store: Store, uri: str, to: Path) -> None:
    """One object to a file or into a folder; with a slash at its end, everything under it into a folder."""
    if not uri.endswith("/"):
        save(store, uri, to / Path(uri).name if to.is_dir() else to)
        return
    found = [there for there, _ in store.list(uri)]
    if not found:
        raise ClusterError(f"nothing lies under {uri}.")
    for there in found:
        save(store, there, to / there.removeprefix(uri))


def save(store: Store, uri: str, path: Path) -> None:
    """One object to one file."""
    data = store.read(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(f"{uri} -> {path}")


if __name__ == "__main__":
    sys.exit(main())
