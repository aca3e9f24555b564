"""Which rows are grouped by their first question, and which by the rest of what they are asked with."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.rows.row_format import Message, Row
from tests.unit.finetune_trainer.copies.test_deduplicate import alike, row

CLASSIFY = "Which department has to answer the message above? Answer with the name of the department only, please."
WORDS = [f"{first}{second}" for first in "bcdfghjklm" for second in ("alo", "eru", "ino", "ota", "ulm", "yde")]


def text(number: int) -> str:
    """Twenty words; texts of different numbers share few of them."""
    return " ".join(WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)] + str(number) for place in range(20))


def groups(rows: list[Row], folder: Path, **wish: object) -> list[int]:
    """The group of each row, numbered by first appearance."""
    folder.mkdir(exist_ok=True)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in alike(rows, folder, **wish).groups.tolist()]


@pytest.mark.parametrize("near", ["Keep", "Group", "Drop"])
@pytest.mark.parametrize("count", [4, 40, 400])
def test_rows_with_one_prompt_and_many_system_prompts_are_not_grouped(tmp_path: Path, near: str, count: int) -> None:
    rows = [row(CLASSIFY, "Sales" if number % 2 else "Support", system=text(number)) for number in range(count)]
    found = alike(rows, tmp_path, near=near)
    assert len(set(found.groups.tolist())) == count
    assert not found.repeats.any()
    assert not found.crowded.any()


def test_of_those_rows_the_ones_with_nearly_the_same_material_are_grouped(tmp_path: Path) -> None:
    rows = [row(CLASSIFY, "Sales", system=text(number)) for number in range(40)]
    again = [row(CLASSIFY, "Support", system=f"{text(number)} indeed") for number in range(10)]
    assert groups([*rows, *again], tmp_path) == [*range(40), *range(10)]
    assert groups([*rows, *again], tmp_path / "keep", near="Keep") == [*range(50)]


def test_rows_with_a_few_prompts_and_many_system_prompts_are_not_grouped(tmp_path: Path) -> None:
    prompts = ["Summarise this.", "Translate this.", "Who wrote this?"]
    rows = [row(prompts[number % 3], f"Answer {number}.", system=text(number)) for number in range(60)]
    assert len(set(groups(rows, tmp_path))) == 60


def test_a_row_without_a_system_prompt_among_them_stays_alone(tmp_path: Path) -> None:
    rows = [row(CLASSIFY, "Sales"), *(row(CLASSIFY, "Sales", system=text(number)) for number in range(20))]
    assert len(set(groups(rows, tmp_path))) == 21


@pytest.mark.parametrize("system", ["", "Answer in one word."])
def test_under_one_system_prompt_rows_are_grouped_by_their_question(tmp_path: Path, system: str) -> None:
    rows = [row(text(number // 2) + " truly" * (number % 2), f"{number}", system=system) for number in range(40)]
    assert groups(rows, tmp_path) == [number // 2 for number in range(40)]
    same = [row(CLASSIFY, f"Answer {number}", system=system) for number in range(40)]
    assert set(groups(same, tmp_path / "same")) == {0}, "nothing but the answer tells these rows apart"


def test_a_question_asked_in_the_styles_of_several_system_prompts_stays_one_group(tmp_path: Path) -> None:
    styles = [f"You are a {style} assistant." for style in ("kind", "brief", "formal", "merry", "patient")]
    rows = [row(text(number), f"{number}", system=style) for number in range(20) for style in styles]
    assert groups(rows, tmp_path) == [number for number in range(20) for _ in styles]


@pytest.mark.parametrize("count", [6, 40, 400])
def test_conversations_with_the_same_greeting_are_not_grouped(tmp_path: Path, count: int) -> None:
    rows = [row("Hi", "Hello! How can I help?", text(number), f"{number}") for number in range(count)]
    assert len(set(groups(rows, tmp_path))) == count
    deeper = [
        row("Hi", "Hello!", "I have a question.", "Ask it.", text(number), f"{number}") for number in range(count)
    ]
    assert len(set(groups(deeper, tmp_path / "deeper"))) == count


def test_a_conversation_cut_off_at_several_lengths_stays_one_group_whatever_it_begins_with(tmp_path: Path) -> None:
    def cuts(number: int) -> list[Row]:
        turns = ["Hi", "Hello!", *(f"{text(number)} {place}" for place in range(10))]
        return [row(*turns[:end]) for end in (4, 6, 8, 10, 12)]

    rows = [each for number in range(20) for each in cuts(number)]
    assert groups(rows, tmp_path) == [number for number in range(20) for _ in range(5)]
    assert set(groups(cuts(1), tmp_path / "one")) == {0}


def test_a_question_with_several_conversations_stays_one_group(tmp_path: Path) -> None:
    rows = [
        row(text(number), "An answer.", f"{text(100 + number * 4 + branch)}", "More.")
        for number in range(50)
        for branch in range(4)
    ]
    assert groups(rows, tmp_path) == [number for number in range(50) for _ in range(4)]


def test_texts_are_grouped_by_the_whole_text(tmp_path: Path) -> None:
    rows = [Row((Message("document", text(number // 2)),), "x:1") for number in range(40)]
    assert groups(rows, tmp_path) == [number // 2 for number in range(40)]


def test_material_can_be_compared_by_its_meaning(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [row(CLASSIFY, "Sales", system=text(number // 2)) for number in range(12)]
    wish = {"embeddingModel": {"uri": str(tiny_model_dir)}, "threshold": 0.9999}
    found = groups(rows, tmp_path, **wish)
    assert [found[number] == found[number + 1] for number in range(0, 12, 2)] == [True] * 6
    assert len(set(found)) > 1


asked = st.tuples(st.sampled_from("abc"), st.sampled_from(["", "s", "t", "u", "v"]), st.lists(st.sampled_from("xyz")))


@given(st.lists(asked, min_size=1, max_size=60), st.randoms())
def test_rows_asked_with_the_very_same_are_one_group_in_every_order(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str, list[str]]], random: np.random.Generator
) -> None:
    def found(order: list[tuple[str, str, list[str]]]) -> list[int]:
        rows = [
            row(*(each for user in (q, *further) for each in (user, "answer")), system=system)
            for q, system, further in order
        ]
        return alike(rows, tmp_path_factory.mktemp("rows"), near="Keep").groups.tolist()

    by_row = {repr(each): group for each, group in zip(said, found(said), strict=True)}
    shuffled = list(said)
    random.shuffle(shuffled)
    assert [by_row[repr(each)] for each in shuffled] == found(shuffled)
