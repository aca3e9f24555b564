"""kubectl's watch, cut into events again."""

import json

from hypothesis import given
from hypothesis import strategies as st

from examples.demo.watch import events

words = st.text(st.sampled_from('a{}[]",\n\\ '), max_size=8)
values = st.recursive(
    st.none() | words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
)


@given(st.lists(st.dictionaries(words, values, min_size=1, max_size=3), max_size=4))
def test_indented_objects_one_after_another_are_told_apart(objects: list[dict[str, object]]) -> None:
    printed = "".join(json.dumps(value, indent=4) + "\n" for value in objects)
    assert list(events(iter(printed.splitlines(keepends=True)))) == objects


def test_an_event_that_is_not_whole_yet_is_not_given_out() -> None:
    assert list(events(iter(["{\n", '    "type": "ADDED"\n']))) == []
