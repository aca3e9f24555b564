"""Which test rows are found in the rows to learn from, and that what rows share by design is no leak."""

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.copies import leaks as module
from finetune_trainer.copies.leaks import leaks
from finetune_trainer.copies.near_duplicates import jaccard, shingles, words_of

VOCABULARY = [f"word{number}" for number in range(3000)]
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:"
)
"""What stands around every row of the Alpaca data set (Taori et al. 2023)."""
SUMMARISE = "You will be given a definition of a task first, then some input of the task. " * 3


def found(questions: Sequence[str], texts: Sequence[str]) -> list[int]:
    return leaks(questions, len(texts), texts.__getitem__).tolist()


def sentences(draw: random.Random, count: int) -> list[str]:
    return [" ".join(draw.choices(VOCABULARY, k=draw.randint(6, 14))) + "." for _ in range(count)]


def one_word_changed(draw: random.Random, question: str) -> str:
    words = question.split()
    words[draw.randrange(len(words))] = "changed"
    return " ".join(words)


def inside_a_longer_row(draw: random.Random, question: str) -> str:
    return " ".join([*sentences(draw, 5), question, *sentences(draw, 5)])


def two_sentences_swapped(draw: random.Random, question: str) -> str:
    first, second, *rest = question.split(". ")
    return ". ".join([second, first, *rest])


@pytest.mark.parametrize("planted", [one_word_changed, inside_a_longer_row, two_sentences_swapped])
def test_planted_test_rows_are_found_where_they_stand(planted: Callable[[random.Random, str], str]) -> None:
    draw = random.Random(0)
    questions = [" ".join(sentences(draw, 4)) for _ in range(100)]
    texts = [" ".join(sentences(draw, 12)) for _ in range(400)]
    copies = [planted(draw, question) for question in questions[:50]]
    assert sum(jaccard(shingles(copy), shingles(q)) < 0.8 for copy, q in zip(copies, questions, strict=False)) > 10
    assert found(questions, texts + copies) == [*range(400, 450), *[-1] * 50]


def test_a_word_in_the_middle_of_45_is_no_disguise() -> None:
    words = VOCABULARY[:45]
    changed = " ".join([*words[:22], "other", *words[23:]])
    assert jaccard(shingles(changed), shingles(" ".join(words))) == pytest.approx(36 / 46)
    assert found([" ".join(words)], [changed]) == [0]


@given(st.integers(20, 60).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))))
def test_in_texts_of_20_words_any_one_word_may_differ(case: tuple[int, int]) -> None:
    size, place = case
    words = VOCABULARY[:size]
    assert found([" ".join(words)], [" ".join([*words[:place], "other", *words[place + 1 :]])]) == [0]


def test_less_than_three_quarters_is_another_question() -> None:
    words = VOCABULARY[:100]
    assert found([" ".join(words)], [" ".join([*words[:75], *VOCABULARY[200:300]])]) == [0]
    assert found([" ".join(words)], [" ".join([*words[:74], *VOCABULARY[200:300]])]) == [-1]
    halves = [" ".join(words[:50]), " ".join(words[50:])]
    assert found([" ".join(words)], halves) == [-1], "two rows have it together, neither has most of it"


def test_of_several_training_rows_the_one_that_covers_most_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = VOCABULARY[:40]
    texts = [" ".join(words[:32]), "of something else", " ".join(words), " ".join(words)]
    assert found([" ".join(words)], texts) == [2]
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert found([" ".join(words)], texts) == [2], "however few are looked at together"


def test_an_instruction_that_most_rows_share_is_no_leak() -> None:
    draw = random.Random(1)
    rows = [ALPACA.format("Name the topic of this text.", " ".join(draw.choices(VOCABULARY, k=10))) for _ in range(600)]
    assert len(words_of(rows[0])) < 4 / 3 * len(words_of(ALPACA + "Name the topic of this text."))
    assert found(rows[:100], rows[100:]) == [-1] * 100
    assert found(rows[:100], [*rows[100:], one_word_changed(random.Random(5), rows[7])])[7] == 500


def test_nor_are_the_instructions_of_many_tasks() -> None:
    draw = random.Random(2)
    tasks = [SUMMARISE + " ".join(draw.choices(VOCABULARY, k=60)) for _ in range(30)]
    rows = [f"{task} {' '.join(draw.choices(VOCABULARY, k=12))}" for task in tasks for _ in range(20)]
    draw.shuffle(rows)
    assert found(rows[:100], rows[100:]) == [-1] * 100


def test_an_instruction_of_all_test_rows_and_of_few_others_is_no_leak_either() -> None:
    draw = random.Random(3)
    instruction = " ".join(draw.choices(VOCABULARY, k=80))
    asked = [f"{instruction} {' '.join(draw.choices(VOCABULARY, k=12))}" for _ in range(100)]
    others = [" ".join(sentences(draw, 5)) for _ in range(400)]
    few = [f"{instruction} {' '.join(draw.choices(VOCABULARY, k=12))}" for _ in range(5)]
    assert found(asked, others + few) == [-1] * 100


@pytest.mark.parametrize("question", ["", "?!", "What is the capital of France?"])
def test_what_is_short_is_found_by_chance_and_not_looked_for(question: str) -> None:
    assert found([question], [question, f"Yes or no: {question} It is Paris."]) == [-1]


def test_scripts_without_spaces_are_compared_by_their_characters() -> None:
    question = "太郎はりんごを三つ買い、花子はみかんを五つ買いました。全部でいくつですか。"
    assert found([question], ["次の問題を解いてください。" + question]) == [0]


@pytest.mark.parametrize("repeated", ["word ", "one two ", "a b c d e f g "])
def test_a_word_repeated_thousands_of_times_needs_linear_time_and_memory(repeated: str) -> None:
    assert found([repeated * 8_000] * 5, ["another text", *[repeated * 8_000] * 5]) == [1] * 5


@given(
    st.lists(st.lists(st.sampled_from("ab"), min_size=8, max_size=40), min_size=1, max_size=4),
    st.lists(st.lists(st.sampled_from("ab"), max_size=40), max_size=4),
)
def test_of_repeated_words_each_is_counted_once_and_none_is_missed(
    questions: list[list[str]], texts: list[list[str]]
) -> None:
    def covers(text: list[str], question: list[str]) -> float:
        grams = {tuple(text[at : at + 5]) for at in range(len(text) - 4)}
        hits = [at for at in range(len(question) - 4) if tuple(question[at : at + 5]) in grams]
        return len({word for at in hits for word in range(at, at + 5)}) / len(question)

    told = found([" ".join(question) for question in questions], [" ".join(text) for text in texts])
    for question, which in zip(questions, told, strict=True):
        shares = [covers(text, question) for text in texts]
        most = max(shares, default=0)
        assert which == (shares.index(most) if most >= 0.75 else -1)


@pytest.mark.parametrize(("questions", "texts"), [([], []), ([], ["a"]), ([VOCABULARY[0] * 9], [])])
def test_where_there_is_nothing_to_look_at_nothing_is_found(questions: list[str], texts: list[str]) -> None:
    assert found(questions, texts) == [-1] * len(questions)


def test_more_questions_than_memory_is_given_for_are_left_unlooked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [" ".join(VOCABULARY[start : start + 30]) for start in range(0, 300, 30)]
    monkeypatch.setattr(module, "MOST_WORDS", 90)
    assert found(questions, questions) == [0, 1, 2]
