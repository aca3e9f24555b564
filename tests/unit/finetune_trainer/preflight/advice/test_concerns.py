"""The advice that each kind of job gets. A good job gets no advice."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from finetune_trainer.preflight.advice.concerns import CONCERNS, Facts, advise
from finetune_trainer.preflight.advice.row_concerns import RowFacts
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
    """Two rows with the readings `noted`, and `others` rows without them."""
    readings = Readings()
    for row in (*[Counter(dict.fromkeys(noted, times))] * 2, *[Noted()] * others):
        readings.add(row)
    readings.unused += unused
    return RowFacts(readings=readings)


TOLD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # reason, the smallest case with advice, the largest case without it, a part of the message
    (
        "TestRowsLeak",
        {"leaked_rows": 3, "leaks": ("a line 1 in b line 7", "a line 2 in b line 9")},
        {"leaked_rows": 0},
        "3 of 100 test rows (3%) also occur in spec.dataset.train with the same or nearly the same answer (a line 1 in "
        "b",
    ),
    (
        "EndOfTurnUntrained",
        {"untrained_end": "No end. Choose another."},
        {"untrained_end": None},
        "No end. Choose another.",
    ),
    (
        "PromptFormatInRows",
        {"marks": {"[INST]": 7, "### Response": 4}},
        {"marks": {"[INST]": 10}},
        "11 of 1,000 training rows (1%) contain marks of a prompt format ([INST] in 7 rows). ",
    ),
    ("FewRows", {"train_rows": 49}, {"train_rows": 50}, "training rows is only 49. Gains usually begin at 50 rows."),
    (
        "FewRows",
        {"train_rows": 999, "full": True},
        {"train_rows": 1000, "full": True},
        "Gains usually begin at 1,000 rows. Add rows, set spec.method.type to LoRA, or",
    ),
    ("FewSteps", {"steps": 1}, {"steps": 20}, "has only 1 optimizer step."),
    ("OneAnswerRepeated", {"same_answer": 800}, {"same_answer": 799}, "800 of 1,000 training rows (80%)"),
    (
        "FewSteps",
        {"steps": 19},
        {"steps": 20},
        "Lower spec.training.globalBatchSize (8), or raise spec.training.epochs.",
    ),
    (
        "FewSteps",
        {"steps": 5, "max_steps": 5},
        {"max_steps": 375},
        "usually change the model little. Raise spec.training.maxSteps (5).",
    ),
    (
        "FewSteps",
        {"steps": 5, "global_batch_size": 1},
        {},
        "usually change the model little. Raise spec.training.epochs, or add rows.",
    ),
    ("RowsLeftOut", {"overlength": 12}, {"overlength": 11}, "12 of 1,112 rows (1%) are left out"),
    (
        "RowsLeftOut",
        {"overlength": 50, "context": 4096},
        {},
        "Raise spec.training.maxSequenceLength, or shorten the rows.",
    ),
    (
        "RowsLeftOut",
        {"overlength": 50, "context": 2048},
        {},
        "The model's context length is also 2,048 tokens, so shorten the rows.",
    ),
    ("TestSetSmall", {"tested_rows": 96}, {"tested_rows": 97}, "evaluated on only 96 test rows."),
    ("TestSetSmall", {"tested_rows": 24}, {"tested_rows": 100}, "plus or minus 20 percentage points"),
    ("NearCopies", {"near_copies": 101}, {"near_copies": 100}, "101 of 1,000 training rows (10%) are near-duplicates"),
    ("RowsAlike", {"crowded": 101}, {"crowded": 100}, "101 of 1,000 training rows (10%) can have near-duplicates"),
    (
        "FewTokensLearned",
        {"supervised_tokens": 2999},
        {"supervised_tokens": 3000},
        "training time. A row has 300 tokens on average.",
    ),
    (
        "ConversationsTakenApart",
        {"taken_apart": 1},
        {"taken_apart": 0},
        "1 conversation is split into one training row for each answer",
    ),
    ("ConversationsTakenApart", {"taken_apart": 1200}, {}, "1,200 conversations are split"),
    ("LearningRateUnusual", {"learning_rate": 2e-3}, {"learning_rate": 1.9e-3}, "10 times above the default 0.0002"),
    ("LearningRateUnusual", {"learning_rate": 1e-6}, {"learning_rate": 3e-5}, "200 times below"),
    ("ManyEpochs", {"steps": 625}, {"steps": 624}, "The run uses each training row 5 times."),
    ("ManyEpochs", {"steps": 9999}, {"steps": 9999, "stops_early": True}, "each training row 80 times"),
    ("ManyEpochs", {"train_rows": 100, "steps": 200}, {"train_rows": 100, "steps": 199}, "16 times"),
    (
        "SourceRepeated",
        {"passes": {"spec.dataset.train[0]": 1.0, "spec.dataset.train[1]": 4.5}},
        {"passes": {"spec.dataset.train[1]": 4.0}},
        "the run uses each row of spec.dataset.train[1] 4.5 times. After",
    ),
    (
        "TurnsNotLearned",
        {"rows": read((Reading.NOT_LEARNED, "weight"), times=2)},
        {"rows": read()},
        "4 answers in 2 rows are excluded from training by weight.",
    ),
    (
        "TurnsNotLearned",
        {"rows": read((Reading.ASKED_TO_LEARN, "train"))},
        {},
        "2 turns in 2 rows are included in training by train, but are not answers.",
    ),
    (
        "ValuesReadAsText",
        {"rows": read((Reading.NUMBER, "label"))},
        {},
        "label contains numbers in 2 of 3 rows. These values become text in JSON notation. For another notation,",
    ),
    (
        "ValuesReadAsText",
        {"rows": read((Reading.DIGITS, "label"), others=0)},
        {"rows": read((Reading.DIGITS, "label"))},
        "label contains numbers as text in all 2 rows. If the numbers are class numbers, replace them",
    ),
    ("ValuesReadAsText", {"rows": read((Reading.OBJECT, "output"))}, {}, "output contains objects in 2 of 3 rows"),
    (
        "ValuesReadAsText",
        {"rows": read((Reading.CLASS, "label"))},
        {},
        "label contains class numbers in 2 of 3 rows. The names of the classes in the metadata of the file are used",
    ),
    (
        "ValuesReadAsText",
        {"rows": read((Reading.FIRST_ANSWER, "answers"))},
        {},
        "2 of 3 rows. Only the first answer is used.",
    ),
    (
        "ThoughtsLearned",
        {"rows": read((Reading.THOUGHT, "reasoning"))},
        {},
        "reasoning contains reasoning in 2 of 3 rows. The model is trained to write this reasoning before the answer",
    ),
    (
        "SpecialTokensInText",
        {"rows": RowFacts(text_rows=5, own_tokens={"<s>": 3, "</s>": 1})},
        {"rows": RowFacts(text_rows=5)},
        "4 of 5 Text rows contain special tokens of the model (<s> in 3 rows). They are read as special tokens.",
    ),
    (
        "SpecialTokensInText",
        {"rows": RowFacts(text_rows=5, foreign_marks={"<|im_start|>": 3})},
        {},
        "3 of 5 Text rows contain marks of another prompt format (<|im_start|> in 3 rows). This model reads the marks",
    ),
    ("ColumnUnused", {"rows": read(unused=list("abcdef"))}, {"rows": read()}, "Not used: a, b, c, d and 2 more. "),
    (
        "ColumnUnused",
        {"rows": read((Reading.UNREAD_KEY, "critique"))},
        {},
        "Not used: the key critique of messages (2 of 3 rows; add its text to the content to use it). ",
    ),
    (
        "PatternUnused",
        {"unused_patterns": ("spec.dataset.clean.remove[2]",)},
        {},
        "spec.dataset.clean.remove[2] matches no row. Correct",
    ),
]


def test_a_good_job_gets_no_advice() -> None:
    assert advise(GOOD) == []


@pytest.mark.parametrize(("reason", "told", "untold", "words"), TOLD)
def test_each_reason_gets_advice_from_its_threshold_on(
    reason: str, told: dict[str, Any], untold: dict[str, Any], words: str
) -> None:
    said = {advice.reason: advice.message for advice in advise(replace(GOOD, **told))}
    assert words in said[reason]
    assert reason not in {advice.reason for advice in advise(replace(GOOD, **untold))}


def test_every_reason_is_tested_and_its_advice_names_a_remedy() -> None:
    assert {reason for reason, *_ in TOLD} == set(CONCERNS)
    for _, told, _, _ in TOLD:
        for advice in advise(replace(GOOD, **told)):
            assert len(advice.message) <= 400
            assert ". " in advice.message


def test_a_job_that_only_evaluates_gets_no_advice_on_training() -> None:
    nothing = replace(GOOD, train_rows=0, steps=0, tokens=0, supervised_tokens=0, learning_rate=0)
    said = advise(replace(nothing, test_rows=20, tested_rows=20, leaked_rows=1))
    assert [advice.reason for advice in said] == ["TestRowsLeak", "TestSetSmall"]


def test_advice_works_without_any_row() -> None:
    assert advise(replace(GOOD, train_rows=0, steps=1, tokens=0, supervised_tokens=0, test_rows=0, tested_rows=0))
