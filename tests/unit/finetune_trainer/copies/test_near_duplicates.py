"""What counts as nearly the same, and that such rows are found."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.copies import near_duplicates
from finetune_trainer.copies.clusters import Clusters
from finetune_trainer.copies.near_duplicates import NearDuplicates, jaccard, shingles, words_of

VOCABULARY = [f"word{number}" for number in range(5000)]
text = st.text(alphabet="ab cdé文\u00df.,;_-1\n", max_size=200)


def clusters_of(texts: Sequence[str], folder: Path, threshold: float = 0.8) -> list[int]:
    near, clusters = NearDuplicates(folder, "rows"), Clusters(len(texts))
    for each in texts:
        near.add(each)
    near.join(clusters, threshold)
    return [int(root) for root in clusters.roots()]


def random_text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(VOCABULARY, k=words))


def edited(draw: random.Random, text: str) -> str:
    words = text.split()
    words[draw.randrange(len(words))] = "edited"
    return " ".join(words)


def similarity(first: str, second: str) -> float:
    return jaccard(shingles(first), shingles(second))


@given(text)
def test_every_text_has_shingles_each_once(text: str) -> None:
    found = shingles(text).tolist()
    assert found
    assert found == sorted(set(found))


@given(text)
def test_case_punctuation_and_white_space_make_no_difference(text: str) -> None:
    if words_of(text):
        assert similarity(text, f"  {text.upper()}!\n") == 1 or text.upper().casefold() != text.casefold()


def test_texts_of_20_words_and_more_are_compared_by_5_grams_of_words() -> None:
    words = VOCABULARY[:40]
    changed = [*words[:20], "other", *words[21:]]
    assert similarity(" ".join(words), " ".join(changed)) == pytest.approx(31 / 41)


def test_shorter_texts_are_compared_by_5_grams_of_characters() -> None:
    text = "a b c d e f g h i"
    assert similarity(text, f"{text[:-1]}X") == pytest.approx(12 / 14)


def test_very_short_texts_are_near_duplicates_only_if_they_are_equal() -> None:
    assert similarity("What is 1?", "what is 1") == 1
    assert similarity("What is 1?", "What is 11?") == 0
    assert similarity("?!", "?!") == 1
    assert similarity("?!", "??!") == 0


def test_scripts_without_spaces_are_compared_by_their_characters() -> None:
    assert words_of("漢字とABC") == ["漢", "字", "と", "abc"]


def test_near_copies_are_found_among_many_rows_and_nothing_else_is(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [random_text(draw, draw.randint(5, 120)) for _ in range(1500)]
    planted = {draw.randrange(1500): len(texts) + copy for copy in range(60)}
    texts += ["" for _ in range(60)]
    for original, copy in planted.items():
        texts[copy] = edited(draw, texts[original])
    roots = clusters_of(texts, tmp_path)
    for original, copy in planted.items():
        assert (roots[original] == roots[copy]) == (similarity(texts[original], texts[copy]) >= 0.8)
    assert sum(root != row for row, root in enumerate(roots[:1500])) == 0


def test_the_threshold_decides(tmp_path: Path) -> None:
    draw = random.Random(1)
    first = random_text(draw, 100)
    second = edited(draw, first)
    assert similarity(first, second) == pytest.approx(91 / 101)
    assert clusters_of([first, second], tmp_path, 0.9) == [0, 0]
    assert clusters_of([first, second], tmp_path, 0.95) == [0, 1]


def test_an_instruction_that_most_rows_repeat_does_not_make_them_alike(tmp_path: Path) -> None:
    draw = random.Random(2)
    instruction = random_text(draw, 150)
    texts = [f"{instruction} {random_text(draw, 12)}" for _ in range(300)]
    assert similarity(texts[0], texts[1]) > 0.8
    texts += [edited(draw, texts[5]), instruction, instruction]
    roots = clusters_of(texts, tmp_path)
    assert roots[:300] == list(range(300))
    assert roots[301] == roots[302], "rows of nothing else are compared by all of it"


@pytest.mark.parametrize("texts", [[], ["alone"], ["", ""]])
def test_few_rows_are_no_trouble(texts: list[str], tmp_path: Path) -> None:
    assert clusters_of(texts, tmp_path) == [0] * len(texts)


def test_rows_of_any_length_are_worked_on_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    texts = [random_text(draw, words) for words in (300, 20, 20, 90, 1, 150, 40)]
    texts += [edited(draw, text) for text in texts]
    at_once = clusters_of(texts, tmp_path)
    monkeypatch.setattr(near_duplicates, "AT_ONCE", 100)
    assert clusters_of(texts, tmp_path) == at_once
    assert at_once != list(range(len(texts)))
