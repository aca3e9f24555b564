"""Comparing models: gain, noise, chance, sources."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_trainer.handover.prepared import Example
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from finetune_trainer.metrics.metric_choice import FITTING
from finetune_trainer.rows.row_format import Message
from finetune_trainer.statistics.chance import pairings
from finetune_trainer.statistics.comparison import Comparison, compare
from finetune_trainer.statistics.evidence import Outcome
from finetune_trainer.statistics.measurements import Answer, FewShot, Measured, Measurements
from finetune_trainer.statistics.metric_rows import QUANTIZED
from tests.unit.finetune_trainer.small_runs import example

LIKELIHOODS = (MetricName.LOSS, MetricName.PERPLEXITY)
TEAMS = ("billing", "login", "shipping", "returns")


def wrote(texts: Sequence[str], expected: Sequence[str], loss: float = 1.0) -> Measured:
    answers = [Answer(text, False, text == right) for text, right in zip(texts, expected, strict=True)]
    rows = len(texts)
    return Measured(np.full(rows, loss * 10) + 0.1 * (np.arange(rows) % 7), np.full(rows, 10), answers, 1.0)


def compared(
    expected: Sequence[str],
    base: Sequence[str],
    tuned: Sequence[str],
    kind: AnswerKind,
    losses: tuple[float, float] = (2.0, 1.0),
    prompted: Sequence[str] | None = None,
    rows: Sequence[Example] | None = None,
    sources: Sequence[str] = (),
) -> Comparison:
    held_out = rows or [example(12, 4, i, texts=(f"question {i}", right)) for i, right in enumerate(expected)]
    answers = Answers(kind, TEAMS if kind is AnswerKind.LABEL else ())
    few_shot = FewShot([wrote(prompted, expected).answers] * 3, (5, 5, 5), 1.0) if prompted else None
    first, second = wrote(base, expected, losses[0]), wrote(tuned, expected, losses[1])
    metrics = (*FITTING[kind], *LIKELIHOODS)
    return compare(held_out, Measurements(first, second, few_shot), metrics, answers, seed=0, sources=sources)


def labels(count: int = 80, seed: int = 0) -> list[str]:
    source = random.Random(seed)
    return [source.choice(TEAMS) for _ in range(count)]


def tickets(count: int = 80, seed: int = 0) -> list[str]:
    source = random.Random(seed)
    return [json.dumps({"team": source.choice(TEAMS), "urgent": source.random() < 0.3}) for _ in range(count)]


REPLIES = (
    "Please reset the router and wait until the light is green.",
    "Your refund was sent today, it takes three days.",
    "We are sorry, the parcel is late, and we look for it.",
)


@pytest.mark.parametrize(
    ("expected", "kind"),
    [
        (labels(200), AnswerKind.LABEL),
        (tickets(200), AnswerKind.JSON),
        ([random.Random(i).choice(REPLIES) for i in range(200)], AnswerKind.TEXT),
    ],
)
def test_a_model_trained_on_shuffled_answers_is_not_called_better(expected: list[str], kind: AnswerKind) -> None:
    shuffled = random.Random(1).sample(expected, len(expected))
    found = compared(expected, ["I am a language model."] * 200, shuffled, kind)
    assert found.change
    assert found.change.sign == 1, "it does beat the base model"
    assert found.outcome is Outcome.UNRELATED
    learned = compared(expected, ["I am a language model."] * 200, expected[:170] + shuffled[170:], kind)
    assert learned.outcome is Outcome.BETTER


@pytest.mark.parametrize(("expected", "kind"), [(labels(), AnswerKind.LABEL), (tickets(), AnswerKind.JSON)])
def test_thoughts_before_answers_change_nothing(expected: list[str], kind: AnswerKind) -> None:
    tuned = expected[:70] + expected[:10]
    thoughtful = [f"<think>\nperhaps {number}\n</think>\n\n{text}" for number, text in enumerate(tuned)]
    rows = [example(12, 4, i, texts=("question", f"<think>so</think>{right}")) for i, right in enumerate(expected)]
    bare, found = (
        compared(expected, ["?"] * 80, given, kind, rows=held_out)
        for given, held_out in (
            (
                tuned,
                [
                    replace(row, messages=(row.messages[0], Message("assistant", right)))
                    for row, right in zip(rows, expected, strict=True)
                ],
            ),
            (thoughtful, rows),
        )
    )
    assert (found.metrics, found.labels, found.fields) == (bare.metrics, bare.labels, bare.fields)
    assert found.labels or found.fields


def test_always_giving_the_most_frequent_answer_is_not_called_better() -> None:
    expected = ["billing"] * 50 + labels(30)
    assert compared(expected, ["?"] * 80, ["billing"] * 80, AnswerKind.LABEL).outcome is Outcome.UNRELATED


def test_the_verdict_compares_with_the_better_of_base_and_few_shot() -> None:
    expected = labels()
    good, better, poor = expected[:60] + ["?"] * 20, expected[:76] + ["?"] * 4, ["?"] * 80
    found = compared(expected, poor, better, AnswerKind.LABEL, prompted=good)
    assert (found.baseline, found.outcome) == (Baseline.FEW_SHOT, Outcome.BETTER)
    assert found.change == found.decision.over_few_shot
    found = compared(expected, poor, good, AnswerKind.LABEL, prompted=good)
    assert (found.baseline, found.outcome) == (Baseline.FEW_SHOT, Outcome.PROMPTING)
    found = compared(expected, good, better, AnswerKind.LABEL, prompted=poor)
    assert (found.baseline, found.outcome) == (Baseline.BASE, Outcome.BETTER)


@pytest.mark.parametrize(
    ("base", "quantized", "tuned", "baseline", "outcome"),
    [
        (2.0, 2.1, 1.5, Baseline.BASE, Outcome.BETTER),
        (2.0, 1.7, 1.5, QUANTIZED, Outcome.BETTER),
        (2.0, 1.5, 1.5, QUANTIZED, Outcome.NOISE),
        (2.0, 1.5, 1.7, QUANTIZED, Outcome.WORSE),
        (1.5, 2.0, 1.7, Baseline.BASE, Outcome.WORSE),
    ],
)
def test_a_verdict_by_the_loss_compares_with_the_better_of_the_base_model_in_bf16_and_in_4_bits(
    base: float, quantized: float, tuned: float, baseline: str, outcome: Outcome
) -> None:
    expected = [""] * 40
    first, second, third = (replace(wrote(expected, expected, loss), answers=[]) for loss in (base, quantized, tuned))
    rows, kind = [example(12, 4, i) for i in range(40)], Answers(AnswerKind.CONTINUATION)
    found = compare(rows, Measurements(first, third, quantized=second), LIKELIHOODS, kind, seed=0)
    assert (found.baseline, found.outcome) == (baseline, outcome)
    assert found.change
    assert found.change.value == pytest.approx(min(base, quantized) - tuned)


def test_answers_count_as_likelier_only_if_the_loss_is_lower_than_for_both_base_models() -> None:
    expected = labels()
    rows = [example(12, 4, i, texts=(f"question {i}", right)) for i, right in enumerate(expected)]
    same = expected[:40] + ["?"] * 40
    base, tuned = wrote(same, expected, 2.0), wrote(same, expected, 1.5)
    metrics, kind = (*FITTING[AnswerKind.LABEL], *LIKELIHOODS), Answers(AnswerKind.LABEL, TEAMS)
    outcomes = []
    for loss in (2.2, 1.5, 1.2):
        four_bit = replace(wrote(same, expected, loss), answers=[])
        found = compare(rows, Measurements(base, tuned, quantized=four_bit), metrics, kind, seed=0)
        assert found.baseline == Baseline.BASE, "the one in 4 bits has no answers"
        outcomes.append(found.outcome)
    assert outcomes == [Outcome.LIKELIER, Outcome.NOISE, Outcome.NOISE]


def test_if_answers_show_no_difference_a_lower_loss_is_reported() -> None:
    expected = labels()
    same = expected[:40] + ["?"] * 40
    found = [compared(expected, same, same, AnswerKind.LABEL, losses) for losses in ((2.0, 1.0), (1, 2), (1, 1))]
    assert [each.outcome for each in found] == [Outcome.LIKELIER, Outcome.NOISE, Outcome.NOISE]
    assert [each.evidence.likelier for each in found] == [1, -1, 0]


@pytest.mark.parametrize("majority", [160, 180])
def test_a_good_classifier_of_uneven_labels_is_called_better(majority: int) -> None:
    expected = ["billing"] * majority + ["login"] * (200 - majority)
    tuned = ["login"] * 6 + expected[6 : majority + 4] + ["billing"] * 2 + expected[majority + 6 :]
    found = compared(expected, ["?"] * 200, tuned, AnswerKind.LABEL)
    assert found.outcome is Outcome.BETTER


def test_a_gain_over_every_draw_of_few_shot_is_found() -> None:
    source, expected = random.Random(0), labels(300)
    wrong = dict(zip(TEAMS, (*TEAMS[1:], TEAMS[0]), strict=True))
    texts = [[text if source.random() < 0.7 else wrong[text] for text in expected] for _ in range(3)]
    tuned = [text if source.random() < 0.82 else wrong[text] for text in expected]
    rows = [example(12, 4, i, texts=(f"question {i}", right)) for i, right in enumerate(expected)]
    few_shot = FewShot([wrote(draw, expected).answers for draw in texts], (5, 5, 5), 1.0)
    base, second = wrote(["?"] * 300, expected, 2.0), wrote(tuned, expected)
    metrics = (*FITTING[AnswerKind.LABEL], *LIKELIHOODS)
    found = compare(rows, Measurements(base, second, few_shot), metrics, Answers(AnswerKind.LABEL, TEAMS), seed=0)
    assert (found.baseline, found.outcome) == (Baseline.FEW_SHOT, Outcome.BETTER)


def test_a_label_without_training_rows_counts_as_a_wrong_answer() -> None:
    expected = labels(80) + ["refunds"] * 20
    found = compared(expected, ["?"] * 100, expected[:80] + ["billing"] * 20, AnswerKind.LABEL)
    recall = found.metrics[MetricName.MACRO_RECALL].tuned
    assert recall
    assert recall.value == pytest.approx(4 / 5)
    assert found.labels
    assert found.labels.confusion["refunds", "billing"] == 20


def test_a_model_with_worse_answers_is_worse_for_any_loss() -> None:
    expected = labels()
    assert compared(expected, expected, ["?"] * 80, AnswerKind.LABEL).outcome is Outcome.WORSE


def test_near_duplicates_count_as_one_row() -> None:
    expected = labels()
    rows = [example(12, 4, i // 20, texts=("q", right)) for i, right in enumerate(expected)]
    found = compared(expected, ["?"] * 80, expected, AnswerKind.LABEL, (1, 1), rows=rows)
    assert (found.rows, found.clusters, found.outcome) == (80, 4, Outcome.NOISE)


def test_each_source_has_its_own_result() -> None:
    expected = labels()
    rows = [replace(example(12, 4, i, texts=("q", right)), mixture=i % 2) for i, right in enumerate(expected)]
    tuned = [right if i % 2 else "?" for i, right in enumerate(expected)]
    found = compared(expected, ["?"] * 80, tuned, AnswerKind.LABEL, rows=rows, sources=["chat", "tickets", "none"])
    assert [(source.name, source.rows) for source in found.sources] == [("chat", 40), ("tickets", 40)]
    values = [source.decision.tuned.value if source.decision.tuned else None for source in found.sources]
    assert values == [0, 1]
    assert compared(expected, expected, expected, AnswerKind.LABEL, sources=["all"]).sources == []


def test_labels_and_fields_are_counted_one_by_one() -> None:
    expected = labels()
    found = compared(expected, ["?"] * 80, ["billing"] * 80, AnswerKind.LABEL)
    assert found.labels
    assert found.labels.confusion["login", "billing"] == expected.count("login")
    assert [score.label for score in found.labels.scores if score.recall == 1] == ["billing"]
    asked = tickets()
    fields = compared(asked, ["?"] * 80, ["{}"] * 40 + asked[40:], AnswerKind.JSON).fields
    assert [(field.path, field.expected, field.right) for field in fields] == [("team", 80, 40), ("urgent", 80, 40)]


def test_one_row_shows_no_difference() -> None:
    found = compared(["login"], ["?"], ["login"], AnswerKind.LABEL)
    assert (found.evidence.chance, found.outcome) == (None, Outcome.NOISE)


def test_text_to_continue_is_judged_by_its_loss() -> None:
    expected = [""] * 40
    models = [wrote(expected, expected, loss) for loss in (2.0, 1.5)]
    bare = [Measured(model.losses, model.labels, [], 1.0) for model in models]
    rows = [example(12, 4, i) for i in range(40)]
    found = compare(rows, Measurements(*bare), LIKELIHOODS, Answers(AnswerKind.CONTINUATION), seed=0)
    assert (found.outcome, found.evidence.chance) == (Outcome.BETTER, None)
    assert found.change
    assert found.change.value == pytest.approx(0.5)


def test_answers_shuffled_within_their_sources_are_not_called_better() -> None:
    teams, replies = labels(100), [random.Random(i).choice(REPLIES) for i in range(100)]
    expected = [text for pair in zip(teams, replies, strict=True) for text in pair]
    shuffled = [
        text
        for pair in zip(random.Random(1).sample(teams, 100), random.Random(2).sample(replies, 100), strict=True)
        for text in pair
    ]
    rows = [replace(example(12, 4, i, texts=("q", right)), mixture=i % 2) for i, right in enumerate(expected)]
    found = compared(expected, ["?"] * 200, shuffled, AnswerKind.TEXT, rows=rows, sources=["labels", "replies"])
    assert found.outcome is Outcome.UNRELATED


def test_rows_without_a_prompt_count_for_no_metric_of_answers() -> None:
    expected = labels()
    rows = [example(12, 4, i, texts=(f"question {i}", right)) for i, right in enumerate(expected)]
    documents = [replace(row, messages=row.messages[-1:]) for row in rows[40:]]
    tuned = expected[:40] + [""] * 40
    found = compared(expected, ["?"] * 80, tuned, AnswerKind.LABEL, rows=[*rows[:40], *documents])
    assert found.decision.tuned
    assert found.decision.tuned.value == 1
    loss = found.metrics[MetricName.LOSS].tuned
    assert loss
    assert loss.value > 0


def test_answers_are_compared_with_other_clusters_of_the_same_source() -> None:
    rows = [replace(example(12, 4, i), cluster=i // 6, mixture=i % 3) for i in range(60)]
    found = pairings(rows, seed=0)
    assert len(found) == 10
    for mine, others in found:
        assert mine == sorted(set(mine))
        assert all(rows[i].cluster != rows[j].cluster for i, j in zip(mine, others, strict=True))
        assert all(rows[i].mixture == rows[j].mixture for i, j in zip(mine, others, strict=True))
    copies = [replace(row, cluster=0) for row in rows]
    assert pairings(copies, seed=0) == []
