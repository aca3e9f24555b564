"""Reads manifests and says what is wrong in them, with the line each finding is about."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_api import names
from finetune_api.bundle import sources_of, uris_of
from finetune_api.conflicts import conflicts
from finetune_api.model import ApiModel
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.uris import FILES, FOLDER, misspelled

KINDS: dict[str, type[ApiModel]] = {names.JOB_KIND: FineTuneJobSpec, names.PROFILE_KIND: FineTuneProfileSpec}


def problems(path: Path) -> Iterator[str]:
    """One line for each thing that is wrong: FILE:LINE: FIELD: what. Objects of other kinds are passed over, but a file
    of nothing else is wrong."""
    try:
        documents = yaml.compose_all(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        objects = [found for node in documents if node for found in _objects(node)]
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    except UnicodeDecodeError:
        yield f"{path}: not UTF-8"
        return
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        yield f"{path}:{line}: not YAML: {error.problem}"
        return
    except yaml.YAMLError as error:
        yield f"{path}: not YAML: {str(error).splitlines()[0]}"
        return
    checked = [(node, body, model) for node, body in objects if (model := KINDS.get(str(body.get("kind"))))]
    if not checked:
        kinds = ", ".join(sorted({str(body.get("kind")) for _, body in objects})) or "nothing"
        yield f"{path}: no {' or '.join(KINDS)} in it, but {kinds}"
    for each in checked:
        yield from _of_object(path, *each)


def _objects(node: yaml.Node) -> Iterator[tuple[yaml.Node, dict[str, Any]]]:
    """The objects of a document, as nodes, which know their lines, and as values: one, or those of a List."""
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


def _of_uris(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """Fields with a URI that the API server or the operator would refuse, and why."""
    files = {f"{field}.uri" for field in sources_of(spec)}
    for field, uri in uris_of(spec).items():
        if what := misspelled(uri, FILES if field in files else FOLDER):
            yield field, what
    yield from conflicts(spec)


def _of_near_copies(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """The field of near-duplicates, where it says how to look for them and not to look for them."""
    if what := spec.dataset.deduplicate.contradiction:
        yield "spec.dataset.deduplicate", what


def _field(place: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _place(field: str) -> list[str | int]:
    """The keys and positions a field's name is made of: what `_field` takes."""
    return [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", field)]


def _line(node: yaml.Node, place: Sequence[str | int]) -> int:
    """Line of the deepest part of `place` that the document has, from 1."""
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
