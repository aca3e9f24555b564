"""What a glob matches, and whether it meets a folder."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import globs


@pytest.mark.parametrize(
    ("glob", "folder", "expected"),
    [
        ("s3://d/tickets/*.jsonl", "s3://d/tickets", True),
        ("s3://d/tickets/*.jsonl", "s3://d/tickets/run", False),
        ("s3://d/tickets/**/*.jsonl", "s3://d/tickets/run", True),
        ("s3://d/**/*.jsonl", "s3://d/tickets", True),
        ("s3://d/**.jsonl", "s3://d/a/b/c", True),
        ("s3://d/*/x.jsonl", "s3://d/tickets", True),
        ("s3://d/*/x.jsonl", "s3://d/tickets/run", False),
        ("s3://d/tick?ts/x.jsonl", "s3://d/tickets", True),
        ("s3://d/tick?ts/x.jsonl", "s3://d/tick/ts", False),
        ("s3://d/tickets*/x.jsonl", "s3://d/tickets", True),
        ("s3://d/tickets.jsonl", "s3://d/tickets", False),
        ("s3://d/tickets.jsonl", "s3://d/tickets.jsonl", True),
        ("s3://d/tickets.jsonl", "s3://d/tickets.jsonl/run", True),
        ("s3://d/*.jsonl", "s3://d/tickets.jsonl", True),
        ("s3://d/tickets/a.jsonl", "s3://d", True),
        ("s3://d/tickets/a.jsonl", "s3://d/tick", False),
        ("s3://d/tickets/a.jsonl", "s3://other/tickets", False),
        ("s3://d/a/**/b/x.jsonl", "s3://d/a/b", True),
        ("s3://d/a/**/b/x.jsonl", "s3://d/ab", False),
        ("/data/*.jsonl", "", True),
    ],
)
def test_a_glob_meets_a_folder(glob: str, folder: str, expected: bool) -> None:
    assert globs.meets(glob, folder) is expected


NAMES = st.text("ab/", min_size=1, max_size=6)
GLOBS = st.lists(st.sampled_from(["a", "b", "/", "*", "?", "**", "/**/"]), min_size=1, max_size=7).map("".join)


@given(GLOBS, NAMES, NAMES)
def test_a_folder_that_contains_a_match_is_found(glob: str, folder: str, rest: str) -> None:
    folder = folder.rstrip("/")
    if globs.expression(glob).fullmatch(f"{folder}/{rest}"):
        assert globs.meets(glob, folder)


@given(GLOBS, NAMES)
def test_what_is_met_has_a_match_in_it_above_it_or_at_it(glob: str, folder: str) -> None:
    folder = folder.rstrip("/")
    # Any wildcard and any letter of the glob can be written with these; the rest of a match is never longer.
    literal = re.sub(r"[*?]", "a", glob)
    ends = [literal[start:] for start in range(len(literal) + 1)]
    rests = {middle + end for end in ends for middle in ("", "/", "a", "a/")} | {""}
    below = any(globs.expression(glob).fullmatch(f"{folder}/{rest}") for rest in rests)
    parts = folder.split("/")
    above = any(globs.expression(glob).fullmatch("/".join(parts[:count])) for count in range(1, len(parts) + 1))
    assert globs.meets(glob, folder) == (below or above)


@given(GLOBS, NAMES, NAMES, NAMES)
def test_folders_with_equal_remainders_have_the_same_matches_in_them(
    glob: str, folder: str, other: str, rest: str
) -> None:
    matches = [bool(globs.expression(glob).fullmatch(f"{each}/{rest}")) for each in (folder, other)]
    left = [globs.remainder(glob, each) for each in (folder, other)]
    assert left[0] != left[1] or matches[0] == matches[1]
    assert all(places or not match for places, match in zip(left, matches, strict=True))


def test_many_wildcards_take_no_long_time() -> None:
    assert globs.meets("s3://d/" + "**a" * 300, "s3://d/" + "a" * 900 + "/b")
