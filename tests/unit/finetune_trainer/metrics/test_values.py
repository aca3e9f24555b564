"""Every metric from rows to a value, with and without resampling."""

from math import e

import numpy as np
import pytest

from finetune_api.spec.evaluation import MetricName
from finetune_trainer.metrics.values import LIKELIHOODS, OF_LABELS, OF_PAIRS, row_statistics, value
from tests.unit.finetune_trainer.answer_pairs import pairs

LABELS = ("yes", "no")
OF_ANSWERS = [name for name in MetricName if name not in LIKELIHOODS]


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_the_expected_answers_themselves_score_one(name: MetricName) -> None:
    expected = ['{"team": "a b c d"}'] * 3 if "JSON" in name or "Field" in name else ["yes", "no", "yes"]
    if name in (MetricName.BLEU, MetricName.ROUGE2):
        expected = ["wait until the light is green"] * 3
    statistics = row_statistics(name, [f" {text}\n" for text in expected], expected, LABELS)
    assert value(name, statistics.sum(axis=0)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_answers_of_another_row_score_less(name: MetricName) -> None:
    expected = ['{"team": "billing"}', '{"team": "login"}'] if "JSON" in name or "Field" in name else ["yes", "no"]
    wrong = ["[", "]"] if name is MetricName.VALID_JSON else expected[::-1]
    assert value(name, row_statistics(name, wrong, expected, LABELS).sum(axis=0)) < 0.5


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_many_sums_are_taken_at_once(name: MetricName) -> None:
    answers, expected = zip(*pairs(20), strict=True)
    statistics = row_statistics(name, answers, expected, LABELS)
    halves = np.stack([statistics[:10].sum(axis=0), statistics[10:].sum(axis=0)])
    assert value(name, halves).tolist() == pytest.approx([float(value(name, half)) for half in halves], nan_ok=True)


def test_loss_is_the_mean_over_labels_and_perplexity_its_exponential() -> None:
    totals = np.array([30.0, 10.0])
    assert value(MetricName.LOSS, totals) == 3.0
    assert value(MetricName.PERPLEXITY, totals) == pytest.approx(e**3)


def test_there_is_a_number_for_every_metric_that_can_be_chosen() -> None:
    assert {*OF_PAIRS, *OF_LABELS, *LIKELIHOODS} == set(MetricName)
