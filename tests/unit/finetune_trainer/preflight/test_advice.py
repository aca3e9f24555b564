"""What is said of a job, and that nothing is said of a good one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from finetune_trainer.preflight.advice import CONCERNS, Facts, advise
from finetune_trainer.preflight.row_advice import RowFacts
from finetune_trainer.rows.readings import Noted, Reading, Readings

GOOD = Facts(
    train_rows=1000,
    all_rows=1100,
    steps=375,
    learning_rate=2e-4,
    usual_learning_rate=2e-4,
    max_sequence_length=2048,
    marks={},
    tokens=300_000,
    supervised_tokens=60_000,
    test_rows=100,
    tested_rows=100,
    passes={},
)


def read(*noted: tuple[Reading, str], times: int = 1, others: int = 1, unused: Sequence[str] = ()) -> RowFacts:
    """Two rows that were read so, and `others` that were not."""
    readings = Readings()
    for row in (*[Counter(dict.fromkeys(noted, times))] * 2, *[Noted()] * others):
        readings.add(row)
    readings.unused += unused
    return RowFacts(readings=readings)


TOLD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # reason, the least that is told, the most that is not, what the sentence says
    (
        "TestRowsLeak",
        {"leaked_rows": 3, "leaks": ("a line 1 in b line 7", "a line 2 in b line 9")},
        {"leaked_rows": 0},
        "3 of 100 test rows (3%) also occur in dataset.train with their answer, at least nearly (a line 1 in b line 7",
    ),
    ("EndOfTurnUntrained", {"untrained_end": "No end: choose another."}, {"untrained_end": None}, "No end: choose"),
    (
        "PromptFormatInRows",
        {"marks": {"[INST]": 7, "### Response": 4}},
        {"marks": {"[INST]": 10}},
        "11 of 1,000 rows (1%) already carry marks of a prompt format ([INST] in 7)",
    ),
    ("FewRows", {"train_rows": 49}, {"train_rows": 50}, "49 rows to learn from are few: 50"),
    ("FewRows", {"train_rows": 999, "full": True}, {"train_rows": 1000, "full": True}, "1,000 is where gains begin"),
    ("FewSteps", {"steps": 1}, {"steps": 20}, "takes 1 optimizer step,"),
    ("OneAnswerRepeated", {"same_answer": 800}, {"same_answer": 799}, "800 of 1,000 rows (80%)"),
    ("FewSteps", {"steps": 19}, {"steps": 20}, "lower training.globalBatchSize (8), or raise training.epochs."),
    ("FewSteps", {"steps": 5, "max_steps": 5}, {"max_steps": 375}, "leave the warm-up: raise training.maxSteps (5)."),
    ("FewSteps", {"steps": 5, "global_batch_size": 1}, {}, "leave the warm-up: raise training.epochs, or add rows."),
    ("RowsLeftOut", {"overlength": 12}, {"overlength": 11}, "12 of 1,112 rows (1%) are left out"),
    ("RowsLeftOut", {"overlength": 50, "context": 4096}, {}, "raise training.maxSequenceLength, or shorten them."),
    ("RowsLeftOut", {"overlength": 50, "context": 2048}, {}, "the model reads no more, so shorten them."),
    ("TestSetSmall", {"tested_rows": 96}, {"tested_rows": 97}, "With 96 test rows"),
    ("TestSetSmall", {"tested_rows": 24}, {"tested_rows": 100}, "to within 20% either way"),
    ("NearCopies", {"near_copies": 101}, {"near_copies": 100}, "101 of 1,000 rows (10%)"),
    ("RowsAlike", {"crowded": 101}, {"crowded": 100}, "101 of 1,000 rows (10%) look like rows"),
    ("FewTokensLearned", {"supervised_tokens": 2999}, {"supervised_tokens": 3000}, "prompts of 300 tokens"),
    (
        "ConversationsTakenApart",
        {"taken_apart": 1},
        {"taken_apart": 0},
        "1 conversation is learned as one row for each",
    ),
    ("ConversationsTakenApart", {"taken_apart": 1200}, {}, "1,200 conversations are learned"),
    ("LearningRateUnusual", {"learning_rate": 2e-3}, {"learning_rate": 1.9e-3}, "10 times above the usual 0.0002"),
    ("LearningRateUnusual", {"learning_rate": 1e-6}, {"learning_rate": 3e-5}, "200 times below"),
    ("ManyEpochs", {"steps": 625}, {"steps": 624}, "Every row is taken 5 times"),
    ("ManyEpochs", {"steps": 9999}, {"steps": 9999, "stops_early": True}, "taken 80 times"),
    ("ManyEpochs", {"train_rows": 100, "steps": 200}, {"train_rows": 100, "steps": 199}, "16 times"),
    (
        "SourceRepeated",
        {"passes": {"dataset.train[0]": 1.0, "dataset.train[1]": 4.5}},
        {"passes": {"dataset.train[1]": 4.0}},
        "every row of dataset.train[1] is taken 4.5 times;",
    ),
    (
        "TurnsNotLearned",
        {"rows": read((Reading.NOT_LEARNED, "weight"), times=2)},
        {"rows": read()},
        "4 answers in 2 rows say by weight that they are not to be learned",
    ),
    (
        "TurnsNotLearned",
        {"rows": read((Reading.ASKED_TO_LEARN, "train"))},
        {},
        "2 turns in 2 rows say by train that they are to be learned, but are not answers",
    ),
    (
        "ValuesReadAsText",
        {"rows": read((Reading.NUMBER, "label"))},
        {},
        "label holds numbers in 2 of 3 rows, read as JSON writes them. To have them written in another way,",
    ),
    (
        "ValuesReadAsText",
        {"rows": read((Reading.DIGITS, "label"), others=0)},
        {"rows": read((Reading.DIGITS, "label"))},
        "label holds numbers as text in all 2 rows. If numbers stand for classes, write the names",
    ),
    ("ValuesReadAsText", {"rows": read((Reading.OBJECT, "output"))}, {}, "output holds objects in 2 of 3 rows"),
    ("ValuesReadAsText", {"rows": read((Reading.FIRST_ANSWER, "answers"))}, {}, "2 of 3 rows: the first one is taken."),
    (
        "ThoughtsLearned",
        {"rows": read((Reading.THOUGHT, "reasoning"))},
        {},
        "reasoning holds a thought in 2 of 3 rows: it is learned before the answer",
    ),
    (
        "SpecialTokensInText",
        {"rows": RowFacts(text_rows=5, own_tokens={"<s>": 3, "</s>": 1})},
        {"rows": RowFacts(text_rows=5)},
        "4 of 5 Text rows hold special tokens of the model (<s> in 3). They are read as such",
    ),
    (
        "SpecialTokensInText",
        {"rows": RowFacts(text_rows=5, foreign_marks={"<|im_start|>": 3})},
        {},
        "3 of 5 Text rows hold marks of another model's prompt format (<|im_start|> in 3), which this model reads as",
    ),
    ("ColumnUnused", {"rows": read(unused=list("abcdef"))}, {"rows": read()}, "is read from a, b, c, d and 2 more. "),
    (
        "ColumnUnused",
        {"rows": read((Reading.UNREAD_KEY, "critique"))},
        {},
        "Nothing is read from the key critique of messages (2 of 3 rows; write it into the content to use it). ",
    ),
    ("PatternUnused", {"unused_patterns": ("dataset.clean.remove[2]",)}, {}, "dataset.clean.remove[2] matched no row"),
]


def test_nothing_is_said_of_a_good_job() -> None:
    assert advise(GOOD) == []


@pytest.mark.parametrize(("reason", "told", "untold", "words"), TOLD)
def test_each_concern_is_told_from_its_threshold_on(
    reason: str, told: dict[str, Any], untold: dict[str, Any], words: str
) -> None:
    said = {advice.reason: advice.message for advice in advise(replace(GOOD, **told))}
    assert words in said[reason]
    assert reason not in {advice.reason for advice in advise(replace(GOOD, **untold))}


def test_every_concern_is_tested_and_tells_what_to_do() -> None:
    assert {reason for reason, *_ in TOLD} == set(CONCERNS)
    for _, told, _, _ in TOLD:
        for advice in advise(replace(GOOD, **told)):
            assert len(advice.message) <= 400
            assert any(mark in advice.message for mark in (": ", ". "))


def test_of_a_job_that_only_evaluates_nothing_is_said_of_training() -> None:
    nothing = replace(GOOD, train_rows=0, steps=0, tokens=0, supervised_tokens=0, learning_rate=0)
    said = advise(replace(nothing, test_rows=20, tested_rows=20, leaked_rows=1))
    assert [advice.reason for advice in said] == ["TestRowsLeak", "TestSetSmall"]


def test_nothing_at_all_is_no_trouble() -> None:
    assert advise(replace(GOOD, train_rows=0, steps=1, tokens=0, supervised_tokens=0, test_rows=0, tested_rows=0))
