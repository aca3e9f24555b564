"""The CRDs generated from the models follow the API server's rules for structural schemas, with bounds everywhere.

That a real API server takes them is proved in tests/integration/finetune_operator/test_contract.py.
"""

import re
from collections.abc import Iterator

import pytest

from finetune_api.model import ApiModel, StatusModel
from finetune_api.schema import Schema, job_crd, profile_crd, structural
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.job import ConditionType, FineTuneJobStatus

CRDS = {"job": job_crd(), "profile": profile_crd()}
FORBIDDEN = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "title", "const", "definitions", "examples"}


def root(crd: str) -> Schema:
    schema: Schema = CRDS[crd]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema below and including `node`, with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from nodes(node[key], f"{path}[]")


def ours(crd: str) -> list[tuple[str, Schema]]:
    """All but what every Kubernetes object has."""
    return [(path, node) for path, node in nodes(root(crd)) if path.startswith((".spec", ".status"))]


def test_no_rule_refuses_a_status_because_a_rule_of_the_spec_is_newer_than_the_spec() -> None:
    schema = dict(nodes(job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]))
    ruled = [path for path, node in schema.items() if "x-kubernetes-validations" in node]
    assert (len(schema) > 100, ruled) == (True, [])


@pytest.mark.parametrize("crd", CRDS)
def test_the_schema_is_structural(crd: str) -> None:
    for path, node in nodes(root(crd)):
        assert not FORBIDDEN & set(node), path
        assert isinstance(node["type"], str), path
        assert not {"properties", "additionalProperties"} <= set(node), path
        for exclusive in ("exclusiveMinimum", "exclusiveMaximum"):
            assert isinstance(node.get(exclusive, True), bool), path


@pytest.mark.parametrize("crd", CRDS)
def test_every_field_is_described_in_a_sentence(crd: str) -> None:
    assert [
        path for path, n in ours(crd) if not path.endswith("]") and not n.get("description", "").endswith(".")
    ] == []


@pytest.mark.parametrize("crd", CRDS)
def test_everything_a_user_writes_is_bounded(crd: str) -> None:
    for path, node in ours(crd):
        if not path.startswith(".spec"):
            continue
        if node["type"] == "string":
            assert "maxLength" in node or "enum" in node, path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] in ("integer", "number"):
            assert {"minimum", "maximum"} <= set(node), path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_every_list_and_string_of_the_status_is_bounded() -> None:
    for path, node in ours("job"):
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "string":
            assert {"maxLength", "enum", "format"} & set(node) or path.endswith("conditions[].status"), path


@pytest.mark.parametrize("crd", CRDS)
def test_every_rule_says_what_to_do(crd: str) -> None:
    messages = [rule["message"] for _, n in nodes(root(crd)) for rule in n.get("x-kubernetes-validations", [])]
    assert messages
    assert [message for message in messages if "must " not in message and not re.search(r": [a-z]", message)] == []


@pytest.mark.parametrize("crd", CRDS)
def test_a_required_field_has_no_default_and_an_optional_one_with_fields_is_filled(crd: str) -> None:
    for path, node in ours(crd):
        for name, child in node.get("properties", {}).items():
            assert not (name in node.get("required", []) and "default" in child), f"{path}.{name}"
            if child.get("default", ...) == {}:
                assert child["type"] == "object", f"{path}.{name}"


def test_reasons_are_open_strings_and_the_words_for_people_are_enums() -> None:
    status = root("job")["properties"]["status"]["properties"]
    condition = status["conditions"]["items"]["properties"]
    assert "enum" not in condition["reason"]
    assert "enum" not in condition["type"]
    assert status["state"]["enum"][-2:] == ["Complete", "Failed"]
    assert all(type in condition["type"]["description"] for type in ConditionType)


@pytest.mark.parametrize("field", ["conditions", "attempts"])
def test_lists_with_several_writers_are_maps(field: str) -> None:
    node = root("job")["properties"]["status"]["properties"][field]
    (key,) = node["x-kubernetes-list-map-keys"]
    assert node["x-kubernetes-list-type"] == "map"
    assert key in node["items"]["required"]


def test_unknown_keys_are_errors_in_what_users_write_and_left_alone_in_what_is_read_back() -> None:
    assert issubclass(FineTuneJobSpec, ApiModel)
    assert FineTuneJobSpec.model_config["extra"] == "forbid"
    assert issubclass(FineTuneJobStatus, StatusModel)
    assert FineTuneJobStatus.model_validate({"newer": 1}).model_dump(exclude_none=True) == {}


def test_an_optional_number_keeps_its_exclusive_bound() -> None:
    split = structural(FineTuneJobSpec)["properties"]["dataset"]["properties"]["split"]["properties"]["test"]
    assert (split["minimum"], split["exclusiveMinimum"], split["maximum"]) == (0, True, 0.5)


@pytest.mark.parametrize(
    ("revision", "is_refused"),
    [
        *((revision, True) for revision in ("refs/pr/12", "pr/12", "refs/convert/parquet", "refs/heads/main")),
        *((revision, False) for revision in ("main", "v1.0", "pr", "my/refs/pr/12", "refs-2", "a" * 40)),
    ],
)
def test_a_revision_is_no_reference_that_anybody_may_make(revision: str, is_refused: bool) -> None:
    (field,) = (n for path, n in nodes(root("job")) if path.endswith("spec.model.revision"))
    (rule,) = (r["rule"] for r in field["x-kubernetes-validations"] if "pull request" in r["message"])
    pattern = re.fullmatch(r"!self\.matches\('(.*)'\)", rule)
    assert pattern is not None
    assert (re.search(pattern[1], revision) is not None) == is_refused


def test_every_field_of_a_job_but_suspend_and_the_run_policy_is_compared_when_it_is_changed() -> None:
    rules = root("job")["properties"]["spec"]["x-kubernetes-validations"]
    rule, _, optional = rules[0]["rule"].partition(" && has(")
    compared = {part.split(" == ")[0].removeprefix("self.") for part in rule.split(" && ")}
    fields = {str(field.alias): field for field in FineTuneJobSpec.model_fields.values()}
    assert compared == set(fields) - {"suspend", "runPolicy", "resumeFrom"}
    assert all(fields[name].is_required() or fields[name].default is not None for name in compared)
    assert optional == (
        "self.resumeFrom) == has(oldSelf.resumeFrom) && "
        "(!has(self.resumeFrom) || self.resumeFrom == oldSelf.resumeFrom)"
    )
