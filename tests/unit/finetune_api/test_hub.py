"""Repositories of a hub, as URIs and patterns name them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import hub
from finetune_api.hub import Repository
from finetune_api.spec.profile import Hub
from finetune_api.uris import FILES, MODEL, misspelled

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
PATHS = st.lists(st.from_regex(r"[a-z*?][a-z0-9*?. +%]{0,10}[a-z]", fullmatch=True), min_size=1, max_size=4)


@given(NAMES.filter(lambda name: name != "datasets"), NAMES)
def test_a_model_is_its_whole_repository(owner: str, name: str) -> None:
    uri = f"hf://{owner}/{name}"
    assert misspelled(uri, MODEL) is None
    assert hub.split(uri) == (Repository("model", f"{owner}/{name}"), "")
    assert Repository("model", f"{owner}/{name}").uri == uri


@given(NAMES, NAMES, PATHS)
def test_a_file_of_a_data_set_has_a_path_in_its_repository(owner: str, name: str, path: list[str]) -> None:
    repository, file = Repository("dataset", f"{owner}/{name}"), "/".join(path) + ".jsonl"
    uri = f"{repository.uri}/{file}"
    assert misspelled(uri, FILES) is None
    assert hub.split(uri) == (repository, file)


@given(st.text(max_size=40))
def test_only_what_the_api_accepts_is_a_repository(text: str) -> None:
    if misspelled(f"hf://{text}", MODEL) is None and not text.startswith("datasets/"):
        found = hub.split(f"hf://{text}")
        assert found
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", found[0].name, re.ASCII)


def test_other_uris_are_on_no_hub() -> None:
    assert hub.split("s3://models/base") is None
    assert hub.split("/models/hf://base") is None
    assert hub.refusal("s3://models/base", "default", None) is None


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        ("meta-llama/*", ["meta-llama/Llama-3.2-1B", "meta-llama/x"]),
        ("*/*", ["meta-llama/Llama-3.2-1B", "meta-llama/x", "acme/x"]),
        ("*/x", ["meta-llama/x", "acme/x"]),
        ("datasets/acme/*", ["datasets/acme/x"]),
        ("datasets/*/*", ["datasets/acme/x"]),
        ("meta-llama/Llama-3?2*", ["meta-llama/Llama-3.2-1B"]),
        ("META-LLAMA/*", []),
        ("meta-llama/Llama", []),
        ("meta.llama/*", []),
    ],
)
def test_a_pattern_allows_models_or_data_sets_of_an_organization(pattern: str, allowed: list[str]) -> None:
    models = ("meta-llama/Llama-3.2-1B", "meta-llama/x", "acme/x")
    repositories = [*(Repository("model", name) for name in models), Repository("dataset", "acme/x")]
    found = [each.path for each in repositories if hub.is_allowed(each, Hub(allowed=[pattern]))]
    assert found == allowed


def test_a_hub_without_patterns_allows_everything() -> None:
    assert hub.is_allowed(Repository("dataset", "acme/x"), Hub())
