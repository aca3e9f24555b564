"""Jobs found by their output: exactly those that `overlap` names."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_api.conflicts import normal, overlap
from finetune_operator.store.outputs import Outputs

URIS = st.lists(st.sampled_from(["a", "ab", "b", "run", "..", ""]), max_size=4).map(
    lambda parts: "s3://bucket" + "".join(f"/{part}" for part in parts)
)


@given(st.lists(URIS, max_size=12), URIS, st.sets(st.integers(0, 11)))
def test_the_index_finds_what_overlaps_and_nothing_else(theirs: list[str], mine: str, removed: set[int]) -> None:
    outputs = Outputs()
    for i, uri in enumerate(theirs):
        outputs.add(str(i), normal(uri))
    for i in removed & set(range(len(theirs))):
        outputs.remove(str(i), normal(theirs[i]))
    expected = {str(i) for i, uri in enumerate(theirs) if i not in removed and overlap(uri, mine)}
    assert outputs.overlapping(normal(mine)) == expected


def test_nothing_is_left_of_removed_outputs() -> None:
    outputs = Outputs()
    outputs.add("a", "s3://bucket/x/y")
    outputs.remove("a", "s3://bucket/x/y")
    assert (outputs._at, outputs._below) == ({}, {})
