"""Leaked test rows: their question and answer also occur in a training row."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from finetune_trainer.copies.deduplicate import prompt_key
from finetune_trainer.preflight.data.leaked_rows import leaked_rows
from finetune_trainer.rows.row_format import DOCUMENT, Message, Row
from finetune_trainer.tokens.row_notes import RowNotes
from finetune_trainer.tokens.row_store import PLACED, Example, Rows, RowStore, StoreWriter
from tests.unit.finetune_trainer.slot_rows import different_slots

Messages = tuple[Message, ...]
VOCABULARY = [f"word{number}" for number in range(2000)]
QUESTION = "A farmer has twelve cows and sells five of them on a Monday, so how many are left for him to milk today?"
ANSWER = "He had twelve cows and sold five, so that he is left with seven of them"


def turn(question: str, answer: str, system: str = "") -> Messages:
    said = (Message("user", question), Message("assistant", answer))
    return (Message("system", system), *said) if system else said


def document(text: str) -> Messages:
    return (Message(DOCUMENT, text),)


@pytest.fixture
def found(tmp_path: Path):  # type: ignore[no-untyped-def]
    """The learned row found for each test row, by its number; rows with the same question are of one group."""

    def find(test: Sequence[Messages], train: Sequence[Messages], one_group: bool = False) -> list[int]:
        notes, keys = RowNotes(), []
        with StoreWriter(tmp_path / f"store-{len(list(tmp_path.iterdir()))}") as writer:
            for number, messages in enumerate([*test, *train]):
                key = prompt_key(Row(messages, f"f:{number}"))
                writer.append(
                    Example(np.arange(3, dtype=np.int32), np.ones(3, np.bool_), 1, messages, f"f:{number}"), key
                )
                notes.add(messages)
                keys.append(int.from_bytes(key[:8]) % 2**31)
        store = RowStore(writer._folder)
        placed = np.zeros(len(keys), PLACED)
        placed["row"] = np.arange(len(keys))
        placed["cluster"] = 0 if one_group else np.unique(keys, return_inverse=True)[1]
        sides = placed[: len(test)], placed[len(test) :]
        return leaked_rows(*(Rows(store, side) for side in sides), notes).tolist()

    return find


def sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choices(VOCABULARY, k=words))


def others(count: int = 60, seed: int = 0) -> list[Messages]:
    source = random.Random(seed)
    return [turn(f"{sentence(source, 20)}?", f"{sentence(source, 10)}.") for _ in range(count)]


@pytest.mark.parametrize("one_group", [False, True])
@pytest.mark.parametrize(
    ("question", "answer", "leaked"),
    [
        (QUESTION, ANSWER, True),
        (QUESTION.upper(), f"  {ANSWER}!", True),
        (QUESTION.replace("Monday", "Friday"), ANSWER, True),
        (QUESTION, ANSWER.replace("twelve", "a dozen"), True),
        (f"Please solve this one for me. {QUESTION} Thanks.", ANSWER, True),
        (QUESTION, "That is for the farmer himself to say, and nobody else can", False),
        (QUESTION.replace("twelve", "nine"), "He had nine cows, and four of these stay in the shed", False),
    ],
)
def test_a_row_leaks_with_its_question_and_its_answer(found, question, answer, leaked, one_group) -> None:  # type: ignore[no-untyped-def]
    train = [*others(), turn(question, answer)]
    assert found([turn(QUESTION, ANSWER)], train, one_group) == [60 if leaked else -1]


@pytest.mark.parametrize("answer", ["a little", "no."])
def test_a_short_question_leaks_with_the_same_answer_alone(found, answer) -> None:  # type: ignore[no-untyped-def]
    train = [*others(), turn("is it  late", "no"), turn("Is it late?", "yes")]
    assert found([turn("Is it late?", answer)], train) == [60 if answer == "no." else -1]


def test_one_prompt_in_all_rows_leaks_nothing_but_the_same_answer(found) -> None:  # type: ignore[no-untyped-def]
    names = [f"Crate {7 * i % 90} on shelf {VOCABULARY[i]}." for i in range(50)]
    longer = [f"Crate {i} stands on shelf {i % 7} by the door of the hall, next to number {i + 3}." for i in range(50)]
    for answers in (names, longer):
        test, train = ([turn("Write a product name.", text) for text in part] for part in (answers[:10], answers[10:]))
        assert found(test, train, one_group=True) == [-1] * 10
        planted = turn("Write a product name.", answers[3].upper())
        assert found(test, [*train, planted], one_group=True) == [-1] * 3 + [40] + [-1] * 6


@pytest.mark.parametrize(("changed", "leaked"), [([15], True), ([5, 12, 19, 26], False)])
def test_one_of_a_prompts_answers_leaks_where_one_word_in_twenty_differs(found, changed, leaked) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(8)
    rows = [turn("Write a short tale.", sentence(source, 32)) for _ in range(9)]
    words = rows[0][1].content.split()
    near = " ".join("other" if place in changed else word for place, word in enumerate(words))
    assert found(rows[:4], [*rows[4:], turn("Write a short tale.", near)], one_group=True)[0] == (5 if leaked else -1)


def test_one_prompt_and_the_material_in_the_system_prompt_is_no_leak(found) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(2)
    rows = [turn("Is this spam?", source.choice(["yes", "no"]), sentence(source, 30)) for _ in range(80)]
    assert found(rows[:10], rows[10:], one_group=True) == [-1] * 10
    system, asked, answer = rows[4]
    planted = (system._replace(content=system.content.upper()), asked, answer)
    assert found(rows[:10], [*rows[10:], planted], one_group=True) == [-1] * 4 + [70] + [-1] * 5


REPLY = "I do not know this, because the text that I was given does not mention it"


@pytest.mark.parametrize("answer", [REPLY, "Not stated."])
@pytest.mark.parametrize("others_have_it", [True, False], ids=["over many documents", "over two documents"])
def test_one_question_over_two_documents_is_two_questions(found, answer, others_have_it) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(9)
    papers = [sentence(source, 40) for _ in range(30)]
    asked_of_all = [turn("What does it say?", sentence(source, 12), paper) for paper in papers[2:]] * others_have_it
    test, train = turn("What does it say?", answer, papers[0]), turn("What does it say?", answer, papers[1])
    for one_group in (True, False):
        assert found([test], [*others(), *asked_of_all, train], one_group) == [-1]
        again = [turn("What does it say?", answer, text) for text in (papers[0].upper(), f"{papers[0]} And so on.")]
        first = len(others()) + len(asked_of_all)
        for copy in again:
            assert found([test], [*others(), *asked_of_all, copy], one_group) == [first]


def test_an_open_question_leaks_with_the_answer_under_nearly_the_same_system_prompt_alone(found) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(10)
    system, other = sentence(source, 30), sentence(source, 30)
    names = [turn("Write a product name.", sentence(source, 25), system) for _ in range(20)]
    asked, said = names[3][1:]
    changed = " ".join(["other", *system.split()[1:]])
    for written, leaked in ((system, 20), (changed, 20), (None, 20), (other, -1)):
        planted = turn(asked.content, said.content, written or "")
        assert found([names[3]], [*names[:3], *names[4:], planted, *names[4:5]]) == [leaked - 1 if leaked > 0 else -1]


def test_a_system_prompt_that_all_test_rows_share_is_no_material(found) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(11)
    asked = [f"{sentence(source, 5)}?" for _ in range(60)]
    test = [turn(text, source.choice(["yes", "no"]), "You are a careful judge of short texts.") for text in asked[:20]]
    train = [turn(row[1].content, row[2].content, "Decide whether the text is spam.") for row in test]
    rest = [turn(text, source.choice(["yes", "no"]), "Decide whether the text is spam.") for text in asked[20:]]
    assert found(test, [*rest, *train]) == list(range(40, 60))


def test_a_row_asked_without_its_system_prompt_is_the_same_row(found) -> None:  # type: ignore[no-untyped-def]
    train = [*others(), turn("What is 12 plus 12?", "24", "You are good at sums.")]
    assert found([turn("What is 12 plus 12?", "24")], train) == [60]


def test_of_slot_lists_those_alone_are_candidates_that_are_said_alike(found) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(1)
    rows = [turn(*row.values()) for row in different_slots(900)]
    other_answers = [turn(row[0].content, sentence(source, 15)) for row in rows[100:]]
    assert sum(np.array(found(rows[:100], rows[100:])) >= 0) < 40
    assert found(rows[:100], other_answers) == [-1] * 100
    assert found(rows[:100], [*other_answers, *rows[:100]]) == list(range(800, 900))


@pytest.mark.parametrize("labels", [("yes", "no"), tuple(f"intent_{i}" for i in range(40))])
def test_the_same_label_of_a_similar_question_is_no_evidence(found, labels) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(3)
    ways = [
        "I cannot get into my account since {} in the morning, please help",
        "my card from {} has not come yet, when",
    ]
    rows = [
        turn(source.choice(ways).format(" ".join(source.choices(VOCABULARY[:30], k=3))), source.choice(labels))
        for _ in range(400)
    ]
    same = {(row[0].content, row[1].content) for row in rows[100:]}
    test = [row for row in rows[:100] if (row[0].content, row[1].content) not in same]
    assert found(test, rows[100:]) == [-1] * len(test)
    planted = [turn(row[0].content.upper(), row[1].content) for row in test[:7]]
    assert found(test, [*rows[100:], *planted]) == [*range(300, 307)] + [-1] * (len(test) - 7)


def test_a_long_question_with_a_changed_word_leaks_its_label(found) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(4)
    rows = [turn(sentence(source, 60), source.choice(["yes", "no"])) for _ in range(80)]
    changed = turn(rows[0][0].content.replace(rows[0][0].content.split()[30], "other"), rows[0][1].content)
    opposite = turn(changed[0].content, {"yes": "no", "no": "yes"}[changed[1].content])
    assert found(rows[:1], [*rows[1:], changed]) == [79]
    assert found(rows[:1], [*rows[1:], opposite]) == [-1]


def test_conversations_with_the_same_beginning_are_not_duplicates(found) -> None:  # type: ignore[no-untyped-def]
    begun = (Message("user", "Hello, I need some help."), Message("assistant", "Of course, what is it about?"))
    source = random.Random(5)
    rows = [(*begun, *turn(f"{sentence(source, 12)}?", f"{sentence(source, 12)}.")) for _ in range(60)]
    thanks = [(*begun, *turn(f"{sentence(source, 5)}", "You are welcome!")) for _ in range(6)]
    assert found([*rows[:10], thanks[0]], [*rows[10:], *thanks[1:]], one_group=True) == [-1] * 11
    longer = (*rows[3], *turn("Thank you.", "You are welcome!"))
    assert found(rows[:10], [*rows[10:], longer], one_group=True) == [-1] * 3 + [50] + [-1] * 6


def test_a_passage_that_rows_share_is_no_leak_of_its_other_questions(found) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(6)
    rows = []
    for _ in range(40):
        passage = sentence(source, 80)
        for _ in range(3):
            answer = " ".join(passage.split()[(at := source.randrange(70)) : at + source.choice([2, 9])])
            rows.append(turn(f"{passage}\n\n{sentence(source, 6)}?", answer))
    assert found(rows[::3], [row for i, row in enumerate(rows) if i % 3]) == [-1] * 40


def test_documents_leak_with_their_text(found) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(7)
    texts = [sentence(source, 40) for _ in range(60)]
    train = [*map(document, texts[5:]), document(f"{texts[1]} and so on"), document(texts[3].upper())]
    assert found([*map(document, texts[:5])], train) == [-1, 55, -1, 56, -1]
    assert found([turn(QUESTION, ANSWER)], [*train, document(f"{QUESTION}\n{ANSWER}")]) == [57]
    assert found([turn(QUESTION, ANSWER)], [*train, document(QUESTION)]) == [-1]


def test_signs_make_another_sum(found) -> None:  # type: ignore[no-untyped-def]
    assert found([turn("What is 9 - 4?", "5")], [*others(), turn("What is 9 + 4?", "5"), turn("Is 9-4 5?", "-5")]) == [
        -1
    ]
