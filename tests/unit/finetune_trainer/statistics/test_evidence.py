"""The evidence for the verdict: the rows that did not leak, and the error rates of the outcome."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_trainer.evaluation.verdict import Cost, verdict
from finetune_trainer.handover.prepared import Example
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from finetune_trainer.metrics.metric_choice import FITTING
from finetune_trainer.statistics import intervals
from finetune_trainer.statistics.comparison import Comparison, compare
from finetune_trainer.statistics.estimates import scored
from finetune_trainer.statistics.evidence import Evidence, Outcome, evidence_of
from finetune_trainer.statistics.measurements import Answer, FewShot, Measured, Measurements
from finetune_trainer.statistics.metric_rows import TUNED
from tests.unit.finetune_trainer.conftest import MakeBundle, write_rows
from tests.unit.finetune_trainer.preflight_runs import run
from tests.unit.finetune_trainer.slot_rows import different_slots
from tests.unit.finetune_trainer.small_runs import example

METRICS = (MetricName.EXACT_MATCH, MetricName.LOSS)
LABELS = [f"intent {number}" for number in range(20)]


def evidence(
    rows: Sequence[Example], base: Sequence[str], tuned: Sequence[str], labels: Sequence[str] = ()
) -> Evidence:
    expected, losses = [row.final_answer for row in rows], np.ones((len(rows), 2))
    models = {
        name: scored([given], expected, labels, METRICS, losses)
        for name, given in ((Baseline.BASE, base), (TUNED, tuned))
    }
    return evidence_of(models, MetricName.EXACT_MATCH, rows, tuned, labels, seed=0)


def held_out(count: int, leaked: int) -> list[Example]:
    """Rows with different answers, each in its own group. The first rows leaked."""
    made = [example(12, 4, i, texts=(f"question {i}", f"answer {i}")) for i in range(count)]
    return [replace(row, leaked=i < leaked) for i, row in enumerate(made)]


def right(rows: Sequence[Example], chance: Callable[[Example], float], source: random.Random) -> list[str]:
    """Answers that are right with a probability that depends on the row."""
    return [row.final_answer if source.random() < chance(row) else "?" for row in rows]


def outcomes(jobs: int, leaked: int, base: tuple[float, float], tuned: tuple[float, float]) -> Counter[Outcome]:
    """Outcomes of simulated jobs. `base`, `tuned`: shares of right answers on the leaked rows and on the other rows."""
    source, rows, found = random.Random(leaked), held_out(100, leaked), Counter[Outcome]()
    for _ in range(jobs):
        answers = [right(rows, lambda row, of=of: of[not row.leaked], source) for of in (base, tuned)]
        found[evidence(rows, *answers).outcome] += 1
    return found


@pytest.mark.parametrize("leaked", [4, 25, 80])
@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ((0.3, 0.3), (0.3, 0.3)),
        ((0.6, 0.2), (0.6, 0.2)),
        ((0.1, 0.1), (0.2, 0.2)),
    ],
    ids=["no gain", "leaked rows are easier", "a small gain everywhere"],
)
def test_few_jobs_without_a_leak_are_called_leaked(
    monkeypatch: pytest.MonkeyPatch, leaked: int, base: tuple[float, float], tuned: tuple[float, float]
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    assert outcomes(200, leaked, base, tuned)[Outcome.LEAKED] <= 10


@pytest.mark.parametrize("leaked", [10, 25, 80])
def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch, leaked: int) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    found = outcomes(100, leaked, (0.2, 0.2), (0.9, 0.2))
    assert found[Outcome.LEAKED] >= 80
    assert found[Outcome.BETTER] <= 5


def test_a_gain_on_the_other_rows_counts_for_any_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    assert outcomes(100, 25, (0.2, 0.2), (1.0, 0.6))[Outcome.BETTER] >= 98


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.lists(st.sampled_from(["right", "?"]), min_size=40, max_size=40))
def test_answers_to_leaked_rows_change_only_whether_the_outcome_is_leaked(
    seed: int, leaked: int, swapped: list[str]
) -> None:
    source, rows = random.Random(seed), held_out(80, leaked)
    base, tuned = (right(rows, lambda _, share=share: share, source) for share in (0.2, source.choice([0.2, 0.5])))
    changed = [row.final_answer if text == "right" else text for row, text in zip(rows, swapped, strict=False)]
    first, second = evidence(rows, base, tuned), evidence(rows, base, [*changed[:leaked], *tuned[leaked:]])
    assert (first.decision, first.rows, first.leaked) == (second.decision, 80 - leaked, leaked)
    assert (first.outcome == second.outcome) or Outcome.LEAKED in (first.outcome, second.outcome)


def test_a_group_with_a_row_that_leaked_does_not_decide() -> None:
    rows = [replace(row, cluster=row.cluster // 2) for row in held_out(40, 3)]
    found = evidence(rows, ["?"] * 40, [row.final_answer for row in rows])
    assert (found.rows, found.clusters, found.leaked) == (36, 18, 4)


def labelled(count: int, source: random.Random, labels: Sequence[str]) -> list[Example]:
    return [example(12, 4, i, texts=(f"question {i}", source.choice(labels))) for i in range(count)]


@pytest.mark.parametrize("labels", [LABELS[:3], LABELS])
def test_shuffled_labels_are_found_and_a_model_that_learned_a_little_is_not_called_unrelated(
    monkeypatch: pytest.MonkeyPatch, labels: list[str]
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    source, found = random.Random(0), {share: Counter[Outcome]() for share in (0.0, 0.3, 0.7)}
    for share, seen in found.items():
        for _ in range(60):
            rows = labelled(120, source, labels)
            expected = [row.final_answer for row in rows]
            others = source.sample(expected, len(expected))
            tuned = [own if source.random() < share else other for own, other in zip(expected, others, strict=True)]
            seen[evidence(rows, ["?"] * 120, tuned, labels).outcome] += 1
    assert found[0.0][Outcome.UNRELATED] >= 45
    assert found[0.0][Outcome.BETTER] <= 4
    assert found[0.3][Outcome.UNRELATED] == 0
    assert found[0.7][Outcome.BETTER] == 60


@pytest.mark.parametrize("tuned", ["?", "answer 3"])
def test_answers_that_fit_no_row_are_not_called_unrelated(tuned: str) -> None:
    rows = held_out(100, 0)
    assert evidence(rows, ["?"] * 100, [tuned] * 100).outcome is Outcome.NOISE
    labels = labelled(100, random.Random(0), LABELS)
    assert evidence(labels, ["?"] * 100, ["?"] * 100, LABELS).outcome is Outcome.NOISE


def test_too_few_rows_to_compare_with_chance_are_noise() -> None:
    rows = labelled(14, random.Random(1), LABELS[:2])
    expected = [row.final_answer for row in rows]
    found = evidence(
        rows, ["?"] * 14, [*expected[:10], *(LABELS[text == LABELS[0]] for text in expected[10:])], LABELS[:2]
    )
    assert found.change
    assert (found.change.sign, found.is_beyond_chance, found.outcome) == (1, False, Outcome.NOISE)


def garbled(text: str, kept: float, source: random.Random) -> str:
    return " ".join(word for word in text.split() if source.random() < kept)


def judged(rows: Sequence[Example], quality: Callable[[Example], tuple[float, float]]) -> Comparison:
    """Compares models on prepared rows. `quality`: share of expected words in the prompted and in the tuned answer."""
    source = random.Random(0)
    kept = [quality(row) for row in rows]

    def measured(number: int | None) -> Measured:
        given = [
            garbled(r.answer, 0.1 if number is None else k[number], source) for r, k in zip(rows, kept, strict=True)
        ]
        return Measured(np.ones(len(rows)), np.full(len(rows), 10), [Answer(text, False, False) for text in given], 1.0)

    few_shot = FewShot([measured(0).answers] * 3, (5, 5, 5), 1.0)
    metrics = (*FITTING[AnswerKind.TEXT], MetricName.LOSS, MetricName.PERPLEXITY)
    return compare(rows, Measurements(measured(None), measured(1), few_shot), metrics, Answers(AnswerKind.TEXT), seed=0)


def test_a_gain_on_slot_lists_is_worth_it_even_if_many_resemble_training_rows(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    rows = different_slots(500)
    train, test = (write_rows(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((rows[99:], rows[:99])))
    prepared = run(make_bundle(dataset={"train": [{"uri": str(train)}], "test": [{"uri": str(test)}]}))
    leaked = sum(row.leaked for row in prepared.test)
    assert 5 <= leaked <= 50, "they are like learned rows, and so are their answers"
    found = judged(prepared.test, lambda _: (0.4, 0.6))
    assert found.outcome is Outcome.BETTER
    said = verdict(found, Cost(1.0, 1))
    assert said.startswith("Tuning was worth it. Prompting the base model with 5 examples was not enough")
    assert f"Token F1 on {found.evidence.rows} held-out rows rose from " in said
    assert found.evidence.rows <= 99 - leaked


def test_test_rows_copied_into_train_are_called_a_leak_if_other_rows_show_no_gain(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    rows = different_slots(500)
    copies = [row | {"completion": f"{row['completion']}!"} for row in rows[:25]]
    parts = ([*rows[99:], *copies], rows[:99])
    train, test = (write_rows(tmp_path / f"{i}.jsonl", part) for i, part in enumerate(parts))
    prepared = run(make_bundle(dataset={"train": [{"uri": str(train)}], "test": [{"uri": str(test)}]}))
    copied = {row["prompt"] for row in rows[:25]} & {row.prompt for row in prepared.train}
    assert len(copied) >= 15, "some of the copies are drawn to validate on"
    assert {row.prompt for row in prepared.test if row.leaked} >= copied
    found = judged(prepared.test, lambda row: (0.4, 1.0 if row.prompt in copied else 0.4))
    assert found.outcome is Outcome.LEAKED
    assert "the model memorised their answers. Remove the leaked rows from the training data" in verdict(found, None)
