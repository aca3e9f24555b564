"""Tokens of rows: prompts are tokenized as a server does it, and documents are split without loss."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.rows.row_format import DOCUMENT, Message, Row
from finetune_trainer.sources.findings import Findings
from finetune_trainer.tokens import tokenization
from finetune_trainer.tokens.render import prompt_format
from finetune_trainer.tokens.row_store import Example
from finetune_trainer.tokens.tokenization import tokenize
from tests.unit.finetune_trainer.conftest import TEMPLATE
from tests.unit.finetune_trainer.tokens.test_render import LLAMA_2, PHI_3, UNENDED, load, row

TEMPLATES = {"chatml": TEMPLATE, "llama-2": LLAMA_2, "phi-3": PHI_3, "unended": UNENDED, "plain": None}
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip) | st.sampled_from(
    ["\n", "assistant", "<|start|>", "<|end|>", "<|start|>assistant\n", " lead", "trail \n", "<s>x"]
).filter(str.strip)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        name: load(tmp_path_factory.mktemp(name), template, bos=name == "llama-2")
        for name, template in TEMPLATES.items()
    }


def tokens(tokenizer: Any, rows: list[Row], **options: Any) -> list[Example]:
    findings = Findings()
    return [example for _, example in tokenize(rows, prompt_format(tokenizer), tokenizer, findings, **options)]


@pytest.mark.parametrize("name", TEMPLATES)
@given(pairs=st.lists(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_prompts_found_in_whole_rows_equal_the_prompts_tokenized_alone(
    tokenizers: dict[str, Any], name: str, pairs: list[list[tuple[str, str]]]
) -> None:
    rows = [row(*(text for pair in conversation for text in pair)) for conversation in pairs]
    found = []
    for checked, near in ((10**9, tokenization.NEAR), (0, tokenization.NEAR), (0, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenization, "CHECKED", checked)
            patch.setattr(tokenization, "NEAR", near)
            found.append(tokens(tokenizers[name], rows))
    for exact, *others in zip(*found, strict=True):
        for told in others:
            assert told.input_ids.tolist() == exact.input_ids.tolist()
            assert told.supervised.tolist() == exact.supervised.tolist()
            assert told.prompt_length == exact.prompt_length


def test_prompts_are_found_without_tokenizing_them_again(
    tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "CHECKED", 0)
    calls = []
    encode = tokenization._Prompts._ids
    monkeypatch.setattr(tokenization._Prompts, "_ids", lambda self, text: calls.append(text) or encode(self, text))
    assert len(tokens(tokenizers["chatml"], [row(f"q {n}", f"a {n}") for n in range(50)])) == 50
    assert calls == ["<|start|>assistant\n"]


@pytest.mark.parametrize("name", ["chatml", "plain", "unended"])
def test_of_a_long_conversation_each_prompt_is_not_tokenized_from_the_beginning(
    tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tokenization, "CHECKED", 1)
    lengths: list[int] = []
    encode = tokenization._Prompts._ids
    monkeypatch.setattr(
        tokenization._Prompts, "_ids", lambda self, text: lengths.append(len(text)) or encode(self, text)
    )
    conversation = row(*(f"turn {n} " + "word " * 70 for n in range(100)))
    (example,) = tokens(tokenizers[name], [conversation])
    told = tokenizers[name].decode(example.input_ids[example.supervised])
    assert [told.count(f"turn {n} ") for n in range(100)] == [0, 1] * 50
    assert sum(lengths) < 2 * sum(len(message.content) for message in conversation.messages)


def test_a_tokenizer_that_special_tokens_do_not_part_is_found_out(
    tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong answer of the quick way is never used: the exact one is while it is checked, and after a difference."""
    rows = [row(f"q {n}", f"a {n}") for n in range(5)]
    right = tokens(tokenizers["chatml"], rows)
    monkeypatch.setattr(tokenization, "CHECKED", 1)
    monkeypatch.setattr(tokenization._Prompts, "_told", lambda self, *_: 1 if self._mark else None)
    wrong = tokens(tokenizers["chatml"], rows)
    assert [e.input_ids.tolist() for e in wrong] == [e.input_ids.tolist() for e in right]


def document(text: str, place: str = "t.jsonl:1") -> Row:
    return Row((Message(DOCUMENT, text),), place)


@pytest.mark.parametrize("name", ["chatml", "llama-2"])
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=80), longest=st.integers(2, 40))
@settings(max_examples=100, deadline=None)
def test_each_token_of_a_document_is_in_exactly_one_piece(
    tokenizers: dict[str, Any], name: str, text: str, longest: int
) -> None:
    tokenizer = tokenizers[name]
    whole = tokenizer(text, add_special_tokens=True)["input_ids"] + [tokenizer.eos_token_id]
    pieces = tokens(tokenizer, [document(text)], longest_document=longest)
    assert np.concatenate([piece.input_ids for piece in pieces]).tolist() == whole
    lengths = [len(piece.input_ids) for piece in pieces]
    assert max(lengths) <= longest
    assert max(lengths) - min(lengths) <= 1
    assert "".join(piece.answer for piece in pieces) == text


def test_every_token_of_a_document_is_learned_but_the_first_of_each_piece(tokenizers: dict[str, Any]) -> None:
    pieces = tokens(tokenizers["chatml"], [document("some words " * 40)], longest_document=50)
    assert len(pieces) > 2
    for piece in pieces:
        assert piece.supervised.tolist() == [False] + [True] * (len(piece.input_ids) - 1)
        assert (piece.prompt_length, piece.prompt, piece.place) == (1, "", "t.jsonl:1")


def test_rows_of_all_formats_keep_their_order(tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "BATCH", 3)
    rows = [document(f"text {n}", f"t:{n}") if n % 3 else row(f"q {n}", "a") for n in range(20)]
    places = [example.place for example in tokens(tokenizers["chatml"], rows)]
    assert places == [found.place for found in rows]


def test_a_batch_has_at_most_the_stated_text(tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "BATCH_CHARACTERS", 100)
    format = prompt_format(tokenizers["chatml"])
    rendered = [(found, format.render(found)[0]) for found in (document("x" * size) for size in (99, 1, 500, 50, 50))]
    batches = list(tokenization._batches(rendered))
    assert [[len(found.text) for _, found in batch] for batch in batches] == [[99, 1], [500], [50, 50]]


@pytest.mark.parametrize("name", ["chatml", "llama-2"])
@pytest.mark.parametrize("text", ["{bos}hello{eos}", "{bos}hello", "hello{eos}", "hello{eos}\n", "hello", "{bos}{eos}"])
def test_a_text_that_begins_and_ends_as_the_model_has_it_gets_neither_token_twice(
    tokenizers: dict[str, Any], name: str, text: str
) -> None:
    tokenizer, begins = tokenizers[name], name == "llama-2" or text.startswith("{bos}")
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    (found,) = tokens(tokenizer, [document(text.format(bos=bos, eos=eos))])
    said = "" if text == "{bos}{eos}" else "hello"
    end = eos + "\n" * text.endswith("\n")
    assert tokenizer.decode(found.input_ids) == f"{bos * begins}{said}{end}"
    assert found.supervised.tolist() == [False] + [True] * (len(found.input_ids) - 1)


def test_a_rendered_text_in_pieces_loses_nothing(tokenizers: dict[str, Any]) -> None:
    text = "<s>" + "<|start|>user\nwhat now<|end|>\n<|start|>assistant\nthis<|end|>\n" * 9
    pieces = tokens(tokenizers["llama-2"], [document(text)], longest_document=20)
    assert tokenizers["llama-2"].decode(np.concatenate([piece.input_ids for piece in pieces])) == text
    assert "".join(piece.answer for piece in pieces) == text


@pytest.mark.parametrize("name", TEMPLATES)
@given(flags=st.lists(st.booleans(), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_answers_that_are_context_are_read_and_not_learned(
    tokenizers: dict[str, Any], name: str, flags: list[bool]
) -> None:
    flags = [*flags, True]
    turns = tuple(
        message
        for number, flag in enumerate(flags)
        for message in (Message("user", f"q {number}"), Message("assistant", f"answer {number}.", flag))
    )
    tokenizer = tokenizers[name]
    (found,) = tokens(tokenizer, [Row(turns, "t.jsonl:1")])
    (all_learned,) = tokens(tokenizer, [Row(tuple(turn._replace(learned=True) for turn in turns), "t.jsonl:1")])
    assert found.input_ids.tolist() == all_learned.input_ids.tolist()
    learned = tokenizer.decode(found.input_ids[found.supervised])
    assert [f"answer {number}." in learned for number in range(len(flags))] == flags
    assert not (found.supervised & ~all_learned.supervised).any()
