"""What counts as the same row, and as the same question."""

from finetune_trainer.deduplicate import drop_copies, prompt_key, row_key
from finetune_trainer.findings import Findings
from finetune_trainer.row_format import Message, Row


def row(*contents: str, system: str = "") -> Row:
    roles = ["user", "assistant"] * len(contents)
    turns = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Row((Message("system", system), *turns) if system else turns, "x:1")


def test_rows_that_differ_in_white_space_or_composition_only_are_copies() -> None:
    composed, decomposed = "caf\u00e9  au lait", " cafe\u0301 au\nlait "
    assert row_key(row("q", composed)) == row_key(row("q", decomposed))


def test_rows_that_differ_in_text_case_or_role_are_not() -> None:
    keys = [row_key(row("a", "b")), row_key(row("a b", "")), row_key(row("A", "b")), row_key(row("a", "b", system="s"))]
    assert len(set(keys)) == len(keys)


def test_later_copies_are_dropped_and_counted() -> None:
    findings = Findings()
    rows = [row("a", "b"), row("a", "c"), row(" a", "b"), row("a", "b ")]
    assert list(drop_copies(rows, set(), findings)) == rows[:2]
    assert findings.duplicates == 2


def test_rows_that_stand_in_test_are_dropped_from_train() -> None:
    findings, seen = Findings(), set[bytes]()
    list(drop_copies([row("a", "b")], seen, findings))
    assert list(drop_copies([row("a", "b"), row("c", "d")], seen, findings)) == [row("c", "d")]


def test_the_same_question_has_one_key_whatever_the_answer_system_prompt_and_what_follows() -> None:
    assert prompt_key(row("q", "yes")) == prompt_key(row(" q", "no")) == prompt_key(row("q", "no", system="s"))
    assert prompt_key(row("q", "a")) == prompt_key(row("q", "a", "more", "b"))
    assert prompt_key(row("q", "yes")) != prompt_key(row("r", "yes"))
