"""The commands `s3 ls URI` and `s3 cp FROM TO` of the demo's shell, to upload rows and download results."""

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
    commands.add_parser("ls", help="list all objects whose URI begins with URI").add_argument("uri", metavar="URI")
    copy = commands.add_parser("cp", help="copy a file to S3 (creates the bucket), or copy a file or a folder/ from S3")
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
    """Uploads a file to `uri`. If `uri` ends with a slash, appends the file's name. Raises ClusterError."""
    if not uri.startswith("s3://"):
        raise ClusterError(f"FROM or TO must be in S3, and {uri} is not in S3. Write it as s3://BUCKET/KEY.")
    uri = f"{uri}{file.name}" if uri.endswith("/") else uri
    store.make_bucket(uri)
    store.write(uri, file.read_bytes())
    print(f"{file} -> {uri}")


def download(store: Store, uri: str, to: Path) -> None:
    """Downloads one object to a file or into a folder. If `uri` ends with a slash, downloads all objects below it.

    Raises ClusterError if there is no such object."""
    if not uri.endswith("/"):
        save(store, uri, to / Path(uri).name if to.is_dir() else to)
        return
    found = [there for there, _ in store.list(uri)]
    if not found:
        raise ClusterError(f"There are no objects under {uri}. List the objects of a bucket with `s3 ls s3://BUCKET/`.")
    for there in found:
        save(store, there, to / there.removeprefix(uri))


def save(store: Store, uri: str, path: Path) -> None:
    """Downloads one object to one file."""
    data = store.read(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(f"{uri} -> {path}")


if __name__ == "__main__":
    sys.exit(main())
