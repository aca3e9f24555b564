"""The row store returns the rows that were appended."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.pod.liveness.heartbeat import beats
from finetune_trainer.rows.row_format import Message
from finetune_trainer.tokens.row_store import (
    PACK,
    PLACED,
    RECORD,
    Example,
    Rows,
    RowStore,
    StoreWriter,
    lengths,
    prompt_lengths,
    supervised_counts,
)

texts = st.text(st.characters(codec="utf-8"), max_size=12)
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts, st.booleans()), min_size=1
).map(tuple)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), max_size=9))
    learned = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    source = f"s3://b/{draw(texts)}:{draw(st.integers(1, 2**32 - 1))}"
    return Example(
        np.array(ids, dtype=np.int32),
        np.array(learned, dtype=np.bool_),
        draw(st.integers(0, len(ids))),
        draw(messages),
        source,
        mixture=draw(st.integers(0, 31)),
    )


def stored(folder: Path, rows: list[Example]) -> RowStore:
    with StoreWriter(folder) as writer:
        for number, row in enumerate(rows):
            writer.append(row, number.to_bytes(8, "little"))
    return RowStore(folder)


def same(first: Example, second: Example) -> bool:
    plain = all(
        getattr(first, name) == getattr(second, name) for name in ("prompt_length", "messages", "place", "mixture")
    )
    return (
        plain
        and first.input_ids.tolist() == second.input_ids.tolist()
        and (first.supervised.tolist() == second.supervised.tolist())
    )


@given(rows=st.lists(examples(), max_size=5))
def test_every_row_is_read_as_it_was_appended(tmp_path_factory, rows: list[Example]) -> None:  # type: ignore[no-untyped-def]
    store = stored(tmp_path_factory.mktemp("store") / "rows", rows)
    assert len(store) == len(rows)
    assert all(same(store.example(number), row) for number, row in enumerate(rows))
    assert store.column("key").tolist() == list(range(len(rows)))


def row(tokens: int, prompt: int, source: str = "f:1") -> Example:
    ids = np.arange(tokens, dtype=np.int32)
    return Example(ids, ids >= prompt, prompt, (Message("user", "q"), Message("assistant", "a")), source)


def test_a_side_has_its_own_order_clusters_and_repetitions(tmp_path: Path) -> None:
    store = stored(tmp_path / "rows", [row(3, 1, "f:1"), row(4, 1, "f:2"), row(5, 2, "g:1")])
    rows = Rows(store, np.array([(2, 7, False), (0, 8, True), (2, 7, False)], PLACED))
    assert [(example.place, example.cluster) for example in rows] == [("g:1", 7), ("f:1", 8), ("g:1", 7)]
    assert [example.place for example in rows[1:]] == ["f:1", "g:1"]
    assert [example.leaked for example in rows] == [False, True, False]
    assert [example.leaked for example in rows.marked(np.array([True, False, True]))] == [True, False, True]


def test_lengths_are_the_same_with_and_without_reading_the_rows(tmp_path: Path) -> None:
    examples = [row(3, 1), row(4, 3), row(5, 2)]
    store = stored(tmp_path / "rows", examples)
    rows = Rows(store, np.array([(2, 0, False), (0, 0, False), (1, 0, False)], PLACED))
    for column in (lengths, prompt_lengths, supervised_counts):
        assert column(rows).tolist() == column([examples[2], examples[0], examples[1]]).tolist()


def test_the_digest_of_a_row_tells_its_tokens_and_what_is_learned_apart(tmp_path: Path) -> None:
    store = stored(tmp_path / "rows", [row(4, 1), row(4, 1, "g:9"), row(4, 2), row(5, 1)])
    first, copy, learned, longer = store.column("digest").tolist()
    assert first == copy
    assert len({first, learned, longer}) == 3


def test_a_record_is_packed_as_numpy_lays_it_out() -> None:
    record = np.frombuffer(PACK(1, 2, 3, 4, 5, 6, 7, 2**32 - 1, 9, 2**64 - 1, b"x" * 16), RECORD)
    assert record.item() == (1, 2, 3, 4, 5, 6, 7, 2**32 - 1, 9, 2**64 - 1, b"x" * 16)


def test_reading_a_row_is_no_sign_of_progress(tmp_path: Path) -> None:
    """A micro-batch is. If its rows counted, the first one would not have the time to compile its kernels."""
    row = Example(np.arange(3, dtype=np.int32), np.ones(3, dtype=np.bool_), 1, (Message("user", "a"),), "f:1")
    store = stored(tmp_path / "store", [row])
    before = beats()
    assert store.example(0).place == "f:1"
    assert beats() == before
