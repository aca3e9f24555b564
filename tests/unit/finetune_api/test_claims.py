"""PersistentVolumeClaims, as URIs and patterns name them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import claims
from finetune_api.spec.profile import Claims
from finetune_api.uris import BUCKET_FOLDER, FILES, FOLDER, MODEL, misspelled

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
PATHS = st.lists(st.from_regex(r"[a-z*?][a-z0-9*?. +%]{0,10}[a-z]", fullmatch=True), min_size=1, max_size=4)


@given(NAMES, PATHS)
def test_a_file_has_a_claim_and_a_path_in_its_volume(claim: str, path: list[str]) -> None:
    uri = f"pvc://{claim}/{'/'.join(path)}.jsonl"
    assert misspelled(uri, FILES) is None
    assert claims.split(uri) == (claim, "/".join(path) + ".jsonl")


@pytest.mark.parametrize("uri", ["pvc://models", "pvc://models/", "pvc://models/llama", "pvc://a.b/c/d/"])
def test_a_model_is_a_folder_or_a_whole_volume(uri: str) -> None:
    assert misspelled(uri, MODEL) is None


@pytest.mark.parametrize(
    ("uri", "shape"),
    [
        ("pvc://", MODEL),
        ("pvc:///llama", MODEL),
        ("pvc://Models/llama", MODEL),
        ("pvc://my_models/llama", MODEL),
        ("pvc://models-/llama", MODEL),
        ("pvc://models/*", MODEL),
        ("pvc://models/../other", MODEL),
        ("pvc://models/a/.", MODEL),
        ("pvc://models/ llama", MODEL),
        ("pvc://models/ll\nama", MODEL),
        ("pvc://rows.jsonl", FILES),
        ("pvc://data/rows.xlsx", FILES),
        ("pvc://data/../rows.jsonl", FILES),
        ("pvc://*/rows.jsonl", FILES),
        ("pvc://results", FOLDER),
        ("pvc://results/", FOLDER),
        ("pvc://results/*", FOLDER),
        ("pvc://cache/prepared", BUCKET_FOLDER),
    ],
)
def test_other_spellings_are_refused(uri: str, shape: object) -> None:
    assert misspelled(uri, shape)  # type: ignore[arg-type]


@given(st.text(max_size=40))
def test_what_is_accepted_names_a_claim_and_no_folder_above(text: str) -> None:
    if misspelled(f"pvc://{text}", MODEL) is None:
        found = claims.split(f"pvc://{text}")
        assert found
        assert found[0]
        assert ".." not in found[1].split("/")


def test_other_uris_are_in_no_claim() -> None:
    assert claims.split("s3://models/base") is None
    assert claims.refusal("s3://models/base", "default", None) is None


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        (["*"], True),
        (["models"], True),
        (["model?"], True),
        (["data", "mod*"], True),
        (["model"], False),
        (["m.*"], False),
    ],
)
def test_a_pattern_allows_claims_by_their_names(patterns: list[str], allowed: bool) -> None:
    assert (claims.refusal("pvc://models/llama", "default", Claims(allowed=patterns)) is None) is allowed


def test_a_refused_claim_is_named_with_those_that_are_allowed() -> None:
    finding, remedy = claims.refusal("pvc://models/llama", "small", Claims(allowed=["data-*", "x"])) or ("", "")
    assert finding == (
        "PersistentVolumeClaim models is not among the claims that FineTuneProfile small allows. It allows data-*, x."
    )
    assert "add models to spec.claims.allowed" in remedy


def test_a_profile_without_claims_allows_none() -> None:
    finding, remedy = claims.refusal("pvc://models/llama", "small", None) or ("", "")
    assert finding == "pvc://models/llama is in a PersistentVolumeClaim, but FineTuneProfile small allows no claims."
    assert "set spec.claims of the profile" in remedy
