"""The choice of the metrics from the training answers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from finetune_api.reasons import FailureReason
from finetune_api.spec.evaluation import LIKELIHOODS, Evaluation, Gate, MetricName, RegressionSet
from finetune_api.status.evaluation import Metrics
from finetune_trainer.handover.prepared import Example
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers, recognise, spread
from finetune_trainer.metrics.metric_choice import choose_metrics, require_metric
from finetune_trainer.metrics.values import row_statistics, value
from finetune_trainer.pod.failure import TrainerFailure
from tests.unit.finetune_trainer.small_runs import example

JSON, TEXT, LABEL = Answers(AnswerKind.JSON), Answers(AnswerKind.TEXT), Answers(AnswerKind.LABEL, ("a", "b"))


def rows(answers: Sequence[str]) -> list[Example]:
    return [example(12, 4, i, texts=("q", answer)) for i, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (['{"a": 1}'] * 18 + ["no"] * 2, AnswerKind.JSON),
        (['{"a": 1}'] * 17 + ["no"] * 3, AnswerKind.LABEL),
        (["yes", " no "] * 10, AnswerKind.LABEL),
        (["yes", "no"] * 9, AnswerKind.TEXT),
        (["yes"] * 100, AnswerKind.TEXT),
        ([f"label {i % 200}" for i in range(2000)], AnswerKind.LABEL),
        ([f"label {i % 201}" for i in range(4020)], AnswerKind.TEXT),
        (["x" * 65, "y"] * 50, AnswerKind.TEXT),
        (["first\nsecond", "y"] * 50, AnswerKind.TEXT),
        ([f"answer {i}" for i in range(100)], AnswerKind.TEXT),
    ],
)
def test_the_kind_is_detected_from_the_answers(answers: list[str], kind: AnswerKind) -> None:
    assert recognise(rows(answers)).kind is kind


def test_labels_come_with_the_most_frequent_first() -> None:
    assert recognise(rows(["no"] * 12 + ["yes"] * 20)).labels == ("yes", "no")


def test_rows_that_ask_nothing_are_text_to_continue() -> None:
    documents = [replace(row, messages=row.messages[-1:]) for row in rows(["Once upon a time."] * 30)]
    assert recognise(documents).kind is AnswerKind.CONTINUATION
    assert recognise(documents + rows(['{"a": 1}'])).kind is AnswerKind.JSON, "told from the rows that ask"


def test_of_many_rows_some_are_looked_at() -> None:
    assert [row.place for row in spread(rows(["x"] * 10), most=4)] == [f"rows.jsonl:{i}" for i in (0, 3, 6, 9)]
    assert len(spread(rows(["x"] * 3), most=4)) == 3


@pytest.mark.parametrize(
    ("answers", "first"),
    [
        (JSON, MetricName.FIELD_MATCH),
        (LABEL, MetricName.EXACT_MATCH),
        (TEXT, MetricName.TOKEN_F1),
        (Answers(AnswerKind.CONTINUATION), MetricName.LOSS),
    ],
)
def test_the_first_metric_decides_and_the_loss_is_always_taken(answers: Answers, first: MetricName) -> None:
    chosen = choose_metrics(Evaluation(), answers)
    assert chosen[0] is first
    assert {MetricName.LOSS, MetricName.PERPLEXITY} < {*chosen, MetricName.BLEU}


def test_what_is_asked_for_is_taken_and_what_gates_need() -> None:
    wish = Evaluation(metrics=[MetricName.BLEU], gates=[Gate(metric=MetricName.ROUGE_L, min=0.5)])
    assert choose_metrics(wish, TEXT) == (
        MetricName.BLEU,
        MetricName.ROUGE_L,
        MetricName.LOSS,
        MetricName.PERPLEXITY,
    )


@pytest.mark.parametrize(
    ("metric", "answers", "why"),
    [
        (
            MetricName.MACRO_F1,
            TEXT,
            r"the training answers are not labels \(2 to 200 different short answers with at least 10 rows",
        ),
        (MetricName.FIELD_MATCH, LABEL, "fewer than 90% of the training answers are a JSON object"),
        (MetricName.BLEU, Answers(AnswerKind.CONTINUATION), "the rows contain text to continue and no answers"),
    ],
)
def test_a_metric_these_answers_cannot_have_is_refused(metric: MetricName, answers: Answers, why: str) -> None:
    for wish in (Evaluation(metrics=[metric]), Evaluation(gates=[Gate(metric=metric, min=0)])):
        with pytest.raises(TrainerFailure, match=f"cannot use the metric {metric}, because {why}") as caught:
            choose_metrics(wish, answers)
        assert caught.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.parametrize(
    ("evaluation", "why"),
    [
        (
            {"baselines": ["Base"], "metric": "ExactMatch"},
            "spec.evaluation.baselines does not contain FewShot. Add FewShot to spec.evaluation.baselines.",
        ),
        (
            {"metric": "Loss"},
            "Loss is not measured with few-shot prompts. Set spec.evaluation.gates[0].minGainOver.base, or choose "
            "another metric.",
        ),
    ],
)
def test_a_gain_over_few_shot_prompting_that_is_not_measured_is_refused(evaluation: dict[str, Any], why: str) -> None:
    gate = {"metric": evaluation.pop("metric"), "minGainOver": {"fewShot": 0.1}}
    wish = Evaluation.model_validate(evaluation | {"gates": [gate]})
    with pytest.raises(TrainerFailure) as caught:
        choose_metrics(wish, TEXT)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert caught.value.message == f"spec.evaluation.gates[0].minGainOver.fewShot cannot be measured, because {why}"


@pytest.mark.parametrize(
    "spec",
    [
        {"metrics": ["ExactMatsh"]},
        {"gates": [{"metric": "exactMatch", "min": 0.5}]},
        {"regression": [{"name": "x", "uri": "s3://acme-data/x.jsonl", "metric": "MakroF1", "maxDrop": 0}]},
    ],
)
def test_an_unknown_metric_is_refused_in_every_field(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Input should be 'Loss', 'Perplexity'"):
        Evaluation.model_validate(spec)


@pytest.mark.parametrize("name", MetricName)
def test_every_metric_has_its_place_in_the_status_and_its_statistics(name: MetricName) -> None:
    assert name.name.lower() in Metrics.model_fields
    totals = np.array([1.0, 2.0]) if name in LIKELIHOODS else row_statistics(name, *[['{"a": 1}']] * 3)[0]
    assert np.isfinite(value(name, totals))


def test_an_unknown_metric_is_an_error() -> None:
    for take in (lambda name: value(name, np.ones(2)), lambda name: row_statistics(name, ["a"], ["a"], ())):
        with pytest.raises(KeyError):
            take("Accuracy")


def test_a_regression_set_has_to_have_its_metric() -> None:
    wish = RegressionSet(uri="s3://acme-data/x.jsonl", name="x", metric=MetricName.FIELD_MATCH, max_drop=0)
    require_metric(wish, rows(['{"a": 1}'] * 10))
    with pytest.raises(TrainerFailure, match=r"spec.evaluation.regression x cannot use the metric FieldMatch"):
        require_metric(wish, rows(["yes"] * 10))
    labels = wish.model_copy(update={"metric": MetricName.MACRO_F1})
    with pytest.raises(
        TrainerFailure, match=r"cannot use the metric MacroF1, because the labels of a regression set are unknown"
    ):
        require_metric(labels, rows(["yes", "no"] * 20))
