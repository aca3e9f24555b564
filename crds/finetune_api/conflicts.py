"""Finds conflicts between the locations of one job: output over input, and files that are used twice."""

import posixpath
from collections.abc import Iterator
from typing import NamedTuple

from finetune_api import globs
from finetune_api.bundle import models_of, sources_of
from finetune_api.spec.evaluation import RegressionSet
from finetune_api.spec.job import FineTuneJobSpec


class Conflict(NamedTuple):
    """A field with a location that is not allowed, the cause, and the remedy."""

    field: str
    finding: str
    remedy: str


def conflicts(spec: FineTuneJobSpec, folder: str = "/") -> Iterator[Conflict]:
    """Yield all conflicts between the URIs of a job.

    `folder`: the absolute path of the folder for relative local paths."""
    yield from _written_over(spec, folder)
    yield from _read_as_rows(spec, folder)
    yield from _read_twice(spec, folder)


def normal(uri: str, folder: str = "/") -> str:
    """Return the URI without a final slash, doubled slashes and folders named . or ..

    Two URIs that some service or file system treats as the same location become the same string."""
    scheme, remote, rest = uri.partition("://")
    if remote:
        root, _, key = rest.partition("/")
        return f"{scheme}://{root}/{posixpath.normpath('/' + key).lstrip('/')}".rstrip("/")
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
                "that folder.",
                "Choose another prefix.",
            )


def _read_as_rows(spec: FineTuneJobSpec, folder: str) -> Iterator[Conflict]:
    output = normal(spec.output.uri, folder)
    for field, files in sources_of(spec).items():
        if globs.meets(normal(files.uri, folder), output):
            yield Conflict(
                "spec.output.uri",
                f"{field} ({files.uri}) reads files from {spec.output.uri}. The next run would read the results of "
                "this job as rows.",
                "Choose a prefix outside of that folder.",
            )


def _read_twice(spec: FineTuneJobSpec, folder: str) -> Iterator[Conflict]:
    """Yield sources that are used twice.

    Sources of train, validation and test must differ in their files or in their columns. A regression set may share
    files with test, or with a regression set of another metric, but not with train."""
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
            yield Conflict(field, f"{files.uri} is already used by {known}.", "Remove or correct one of the two.")
