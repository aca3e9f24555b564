"""Reads manifests and finds the problems in them, each with its line."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_api import names
from finetune_api.bundle import misspelled_of
from finetune_api.conflicts import conflicts
from finetune_api.model import ApiModel
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.uris import BUCKET_FOLDER, misspelled

KINDS: dict[str, type[ApiModel]] = {names.JOB_KIND: FineTuneJobSpec, names.PROFILE_KIND: FineTuneProfileSpec}


def problems(path: Path) -> Iterator[str]:
    """Yield one line per problem: FILE:LINE: FIELD: PROBLEM.

    Objects of other kinds are ignored, but a file that contains only such objects is a problem."""
    try:
        documents = yaml.compose_all(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        objects = [found for node in documents if node for found in _objects(node)]
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    except UnicodeDecodeError:
        yield f"{path}: the file is not UTF-8: save it as UTF-8"
        return
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        yield f"{path}:{line}: the file is not valid YAML: {error.problem}"
        return
    except yaml.YAMLError as error:
        yield f"{path}: the file is not valid YAML: {str(error).splitlines()[0]}"
        return
    checked = [(node, body, model) for node, body in objects if (model := KINDS.get(str(body.get("kind"))))]
    if not checked:
        kinds = ", ".join(sorted({str(body.get("kind")) for _, body in objects})) or "nothing"
        yield f"{path}: the file contains no {' or '.join(KINDS)}; it contains {kinds}"
    for each in checked:
        yield from _of_object(path, *each)


def _objects(node: yaml.Node) -> Iterator[tuple[yaml.Node, dict[str, Any]]]:
    """Yield the objects of a document, as a node with its line and as a value: one object, or those of a List."""
    body = yaml.SafeLoader("").construct_object(node, deep=True)
    if not isinstance(body, dict):
        return
    items = next((value for key, value in node.value if key.value == "items"), None)
    if body.get("kind") == "List" and isinstance(items, yaml.SequenceNode):
        for item in items.value:
            yield from _objects(item)
    else:
        yield node, body


def _of_object(path: Path, node: yaml.Node, body: dict[str, Any], model: type[ApiModel]) -> Iterator[str]:
    if body.get("apiVersion") != names.API_VERSION:
        yield f"{path}:{_line(node, ('apiVersion',))}: apiVersion: must be {names.API_VERSION}"
    try:
        spec = model.model_validate(body.get("spec", {}))
    except ValidationError as error:
        for finding in error.errors():
            place = ("spec", *finding["loc"])
            what = "unknown field" if finding["type"] == "extra_forbidden" else finding["msg"]
            yield f"{path}:{_line(node, place)}: {_field(place)}: {what}"
        return
    if isinstance(spec, FineTuneJobSpec):
        for field, what in (*_of_uris(spec), *_of_near_copies(spec)):
            yield f"{path}:{_line(node, _place(field))}: {field}: {what}"
    if isinstance(spec, FineTuneProfileSpec) and spec.prepared_cache:
        field = "spec.preparedCache.uri"
        if wrong := misspelled(spec.prepared_cache.uri, BUCKET_FOLDER):
            yield f"{path}:{_line(node, _place(field))}: {field}: {wrong}"


def _of_uris(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """Yield each field with a URI that the API server or the operator would refuse, and the cause."""
    for field, _, what in misspelled_of(spec):
        yield field, what
    if contradiction := spec.model.contradiction:
        yield "spec.model", contradiction
    for conflict in conflicts(spec):
        yield conflict.field, f"{conflict.finding} {conflict.remedy}"


def _of_near_copies(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """The field of near-duplicates, where it says how to look for them and not to look for them."""
    if what := spec.dataset.deduplicate.contradiction:
        yield "spec.dataset.deduplicate", what


def _field(place: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _place(field: str) -> list[str | int]:
    """Return the keys and positions in the name of a field: the inverse of `_field`."""
    return [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", field)]


def _line(node: yaml.Node, place: Sequence[str | int]) -> int:
    """Return the line, counted from 1, of the deepest part of `place` that exists in the document."""
    line = node.start_mark.line + 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == part), None)
            if entry is None:
                return line
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
