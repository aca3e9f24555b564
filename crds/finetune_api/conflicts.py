"""Places of one job that would get in each other's way: what it writes, what it reads, and what it reads twice."""

import posixpath
from collections.abc import Iterator
from typing import NamedTuple

from finetune_api import globs
from finetune_api.bundle import models_of, sources_of
from finetune_api.spec.evaluation import RegressionSet
from finetune_api.spec.job import FineTuneJobSpec


class Conflict(NamedTuple):
    """A field that names a place it must not, and why, as a sentence with its remedy."""

    field: str
    message: str


def conflicts(spec: FineTuneJobSpec, folder: str = "/") -> Iterator[Conflict]:
    """Everything wrong with where a job reads and writes, judged by the URIs alone. `folder`: the absolute path that
    relative local paths begin from."""
    yield from _written_over(spec, folder)
    yield from _read_as_rows(spec, folder)
    yield from _read_twice(spec, folder)


def normal(uri: str, folder: str = "/") -> str:
    """The URI without a slash at its end, doubled slashes and folders called . or .. : two URIs that some service or
    file system takes for one place are one string."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return f"s3://{bucket}/{posixpath.normpath('/' + key).lstrip('/')}".rstrip("/")
    path = posixpath.normpath(posixpath.join(folder, uri))
    return "/" + path.strip("/") if path.strip("/") else ""


def overlap(first: str, second: str) -> bool:
    """Whether two folders, given by their URIs, are one place or one is inside the other."""
    places = sorted(f"{normal(uri)}/" for uri in (first, second))
    return places[1].startswith(places[0])


def _written_over(spec: FineTuneJobSpec, folder: str) -> Iterator[Conflict]:
    output = normal(spec.output.uri, folder)
    for field, uri in models_of(spec).items():
        if f"{normal(uri, folder)}/".startswith(f"{output}/"):
            yield Conflict(
                "spec.output.uri",
                f"{spec.output.uri} is the folder of {field} ({uri}) or a folder above it. The results could overwrite "
                "that folder: choose another prefix.",
            )


def _read_as_rows(spec: FineTuneJobSpec, folder: str) -> Iterator[Conflict]:
    output = normal(spec.output.uri, folder)
    for field, files in sources_of(spec).items():
        if globs.meets(normal(files.uri, folder), output):
            yield Conflict(
                "spec.output.uri",
                f"{field} ({files.uri}) reads files from {spec.output.uri}. The next run would read the results of "
                "this job as rows: choose a prefix outside of that folder.",
            )


def _read_twice(spec: FineTuneJobSpec, folder: str) -> Iterator[Conflict]:
    """Sources of train, validation and test have to differ in their files or in what they read of them. A regression
    set may share files with test, or with another set by another metric, but not with train."""
    read: dict[object, str] = {}
    learned: dict[object, str] = {}
    for field, files in sources_of(spec).items():
        rows = (normal(files.uri, folder), files.columns)
        if isinstance(files, RegressionSet):
            known = learned.get(rows) or read.setdefault((rows, files.metric), field)
        else:
            known = read.setdefault(rows, field)
        if field.startswith("spec.dataset.train"):
            learned.setdefault(rows, field)
        if known != field:
            yield Conflict(field, f"{files.uri} is already used by {known}: remove or correct one of the two.")
