"""What counts as the same row, as the same question, and as nearly the same."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.bundle import Bundle
from finetune_api.spec.row_cleaning import Deduplicate
from finetune_trainer.copies.deduplicate import Alike, NearCopies, SeenKeys, drop_copies, prompt_key, row_key
from finetune_trainer.rows.row_format import Message, Row
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import open_storage


def row(*contents: str, system: str = "") -> Row:
    roles = ["user", "assistant"] * len(contents)
    turns = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Row((Message("system", system), *turns) if system else turns, "x:1")


def test_rows_that_differ_in_white_space_or_composition_only_are_copies() -> None:
    composed, decomposed = "caf\u00e9  au lait", " cafe\u0301 au\nlait "
    assert row_key(row("q", composed)) == row_key(row("q", decomposed))


def test_rows_that_differ_in_text_case_role_or_what_is_learned_are_not() -> None:
    keys = [row_key(row("a", "b")), row_key(row("a b", "")), row_key(row("A", "b")), row_key(row("a", "b", system="s"))]
    context = row("a", "b")
    keys.append(row_key(Row(tuple(message._replace(learned=False) for message in context.messages), "x:1")))
    assert len(set(keys)) == len(keys)


def test_later_copies_are_dropped_and_counted() -> None:
    findings = Findings()
    rows = [row("a", "b"), row("a", "c"), row(" a", "b"), row("a", "b ")]
    assert list(drop_copies(rows, SeenKeys(), findings)) == rows[:2]
    assert findings.duplicates == 2


def test_rows_that_stand_in_test_are_dropped_from_train() -> None:
    findings, seen = Findings(), SeenKeys()
    list(drop_copies([row("a", "b")], seen, findings))
    assert list(drop_copies([row("a", "b"), row("c", "d")], seen, findings)) == [row("c", "d")]


def test_the_same_question_has_one_key_whatever_the_answer_system_prompt_and_what_follows() -> None:
    assert prompt_key(row("q", "yes")) == prompt_key(row(" q", "no")) == prompt_key(row("q", "no", system="s"))
    assert prompt_key(row("q", "a")) == prompt_key(row("q", "a", "more", "b"))
    assert prompt_key(row("q", "yes")) != prompt_key(row("r", "yes"))


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=60))
def test_a_set_of_keys_knows_what_it_was_given(keys: list[int]) -> None:
    seen, known = SeenKeys(), set()
    seen.RECENT = 4  # so that most of them are in the sorted part
    for key in keys:
        assert seen.add(key) == (key not in known)
        known.add(key)


FOLDER = {"uri": "/nowhere"}
TEXT = (
    "The committee approved the annual budget for roads, schools and hospitals after a long debate on Tuesday evening."
)
EDITED = TEXT.replace("Tuesday", "Wednesday")
ROWS = [row(TEXT, "yes"), row("Who painted the ceiling?", "Michelangelo"), row(EDITED, "no"), row(TEXT, "perhaps")]


def alike(rows: list[Row], folder: Path, **wish: object) -> Alike:
    bundle = Bundle.model_validate({"spec": {"model": FOLDER, "dataset": {"train": [FOLDER]}, "output": FOLDER}})
    copies = NearCopies(Deduplicate.model_validate(wish), open_storage(bundle), folder)
    for each in rows:
        copies.add(each.messages)
    keys = np.array([int.from_bytes(prompt_key(each)[:8], "little") for each in rows], dtype=np.uint64)
    return copies.find(keys, lambda number: rows[number].messages)


def test_rows_that_ask_nearly_the_same_form_one_group(tmp_path: Path) -> None:
    found = alike(ROWS, tmp_path)
    assert len({found.groups[index] for index in (0, 2, 3)}) == 1
    assert found.groups[1] != found.groups[0]
    assert found.repeats.tolist() == [False, False, True, False], "asking the very same again is no near copy"


def test_under_keep_only_rows_that_ask_the_very_same_do(tmp_path: Path) -> None:
    found = alike(ROWS, tmp_path, near="Keep")
    assert found.groups[0] == found.groups[3]
    assert found.groups[2] not in (found.groups[0], found.groups[1])
    assert not found.repeats.any()


def test_drop_compares_question_and_answer_and_keeps_the_first_row(tmp_path: Path) -> None:
    answers = ["yes", "Nobody knows what became of it in the end."]
    rows = [row(TEXT, answers[0]), row(EDITED, answers[0]), row(EDITED, answers[1])]
    found = alike(rows, tmp_path, near="Drop")
    assert found.repeats.tolist() == [False, True, False]
    assert len(set(found.groups)) == 1, "what is kept is still grouped by its question"


def test_the_parts_of_a_row_stay_or_go_together(tmp_path: Path) -> None:
    first, repeated, other = row(TEXT, "yes"), row(EDITED, "yes"), row("Who painted the ceiling?", "Michelangelo")
    found = alike([first, first, first, other, repeated, repeated], tmp_path, near="Drop")
    assert found.repeats.tolist() == [False] * 4 + [True] * 2


def test_a_row_of_more_parts_than_a_cluster_may_have_rows_repeats_nothing(tmp_path: Path) -> None:
    rows = [row(f"Who painted ceiling number {number}?", f"Painter {number}") for number in range(3)]
    found = alike([each for each in rows for _ in range(40)], tmp_path, near="Drop")
    assert not found.repeats.any()
    assert not found.crowded.any()
    assert len(set(found.groups)) == 3


def test_groups_do_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    groups = alike(ROWS, tmp_path).groups
    assert alike(ROWS[::-1], tmp_path).groups.tolist() == groups[::-1].tolist()


def test_a_higher_threshold_finds_fewer(tmp_path: Path) -> None:
    assert not alike(ROWS, tmp_path, threshold=0.99).repeats.any()


def test_rows_can_be_compared_by_their_meaning(tmp_path: Path, tiny_model_dir: Path) -> None:
    found = alike(ROWS, tmp_path, embeddingModel={"uri": str(tiny_model_dir)}, threshold=0.999)
    assert found.groups[0] == found.groups[3], "the very same question"
    assert found.groups[1] != found.groups[0]
    assert (tmp_path / "questions.vectors").stat().st_size == len(ROWS) * 32 * 2, "half precision"
