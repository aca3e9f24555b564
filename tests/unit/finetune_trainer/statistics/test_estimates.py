"""Values, confidence intervals and changes of models on the same rows."""

import numpy as np
import pytest

from finetune_api.spec.evaluation import MetricName
from finetune_trainer.statistics.estimates import Paired, Scored, scored
from finetune_trainer.statistics.intervals import wilson

EXACT, LOSS = MetricName.EXACT_MATCH, MetricName.LOSS


def answered(right: int, of: int, loss: float = 1.0) -> Scored:
    """A model that answers the first rows right, with losses near a mean."""
    texts = ["yes" if row < right else "no" for row in range(of)]
    likelihoods = np.array([[10 * (loss + 0.01 * (row % 7)), 10] for row in range(of)])
    return scored([texts], ["yes"] * of, (), [EXACT, LOSS, MetricName.TOKEN_F1], likelihoods)


def paired(before: Scored, after: Scored, clusters: list[int] | None = None) -> Paired:
    rows = len(before.statistics[EXACT])
    return Paired({"before": before, "after": after}, clusters or list(range(rows)), seed=0)


def test_a_share_has_wilsons_interval() -> None:
    found = paired(answered(10, 40), answered(30, 40)).estimate("before", EXACT)
    assert found
    assert (found.value, found.interval) == (0.25, wilson(10, 40))


def test_a_clear_gain_is_significant_and_inside_its_interval() -> None:
    change = paired(answered(10, 40), answered(30, 40)).change("before", "after", EXACT)
    assert change
    assert (change.value, change.sign, change.differing) == (0.5, 1, 20)
    assert change.interval.low < 0.5 < change.interval.high
    assert change.p_value < 0.001


def test_a_positive_change_is_better_for_a_loss_too() -> None:
    change = paired(answered(0, 40, loss=2.0), answered(0, 40, loss=1.5)).change("before", "after", LOSS)
    assert change
    assert change.value == pytest.approx(0.5)
    assert change.sign == 1
    worse = paired(answered(0, 40, loss=1.5), answered(0, 40, loss=2.0)).change("before", "after", LOSS)
    assert worse
    assert worse.sign == -1


@pytest.mark.parametrize(("gained", "sign"), [(0, 0), (3, 0), (5, 0), (6, 1)])
def test_few_rows_are_not_significant(gained: int, sign: int) -> None:
    change = paired(answered(0, 40), answered(gained, 40)).change("before", "after", EXACT)
    assert change
    assert change.sign == sign


@pytest.mark.parametrize(("gained", "sign"), [(5, 0), (6, 1)])
def test_five_groups_are_too_few_for_any_metric(gained: int, sign: int) -> None:
    change = paired(answered(0, 40), answered(gained, 40)).change("before", "after", MetricName.TOKEN_F1)
    assert change
    assert change.interval.low > 0, "the bootstrap alone would be sure"
    assert change.sign == sign


def test_a_gain_on_copies_of_one_row_is_not_significant() -> None:
    clusters = [0] * 20 + list(range(1, 21))
    change = paired(answered(0, 40), answered(20, 40), clusters).change("before", "after", MetricName.TOKEN_F1)
    assert change
    assert (change.value, change.differing, change.sign) == (0.5, 1, 0)


def test_several_answers_to_a_row_count_as_their_mean() -> None:
    texts = [["yes", "no"], ["yes", "yes"], ["no", "no"]]
    found = scored(texts, ["yes", "yes"], (), [EXACT, LOSS])
    assert found.of_row(EXACT) == pytest.approx(np.array([[2 / 3, 1], [1 / 3, 1]]))
    assert LOSS not in found.statistics, "nothing is known of it"


def test_a_metric_without_rows_has_no_value() -> None:
    models = {"m": scored([["{}"] * 8], ["no JSON"] * 8, (), [MetricName.VALID_JSON, EXACT])}
    found = Paired(models, range(8), seed=0)
    assert found.estimate("m", MetricName.VALID_JSON) is None
    assert found.estimate("other", EXACT) is None
    assert found.change("m", "m", MetricName.VALID_JSON) is None


def test_a_metric_that_was_never_measured_is_an_error() -> None:
    with pytest.raises(KeyError, match="Loss"):
        Paired({"m": scored([["yes"]], ["yes"], (), [EXACT])}, [0], seed=0).estimate("m", LOSS)


@pytest.mark.parametrize(("leaked_gain", "sign"), [(1.0, 1), (0.25, 0), (0.0, 0)])
def test_a_gap_is_the_difference_of_the_gains_of_two_parts_of_the_rows(leaked_gain: float, sign: int) -> None:
    part = np.arange(80) < 20
    changed = np.where(part, np.arange(80) % 20 < 20 * leaked_gain, np.arange(80) % 4 == 0)
    before, after = (
        scored([["yes" if is_right else "no" for is_right in right]], ["yes"] * 80, (), [EXACT])
        for right in (np.zeros(80), changed)
    )
    gap = paired(before, after).gap("before", "after", EXACT, part)
    assert gap
    assert (gap.value, gap.sign) == (leaked_gain - 0.25, sign if leaked_gain else gap.sign)
    assert gap.sign <= sign
    turned = paired(before, after).gap("before", "after", EXACT, ~part)
    assert turned
    assert turned.value == -gap.value


def test_a_gap_without_other_rows_is_not_known() -> None:
    both = paired(answered(0, 20), answered(9, 20))
    assert both.gap("before", "after", EXACT, np.ones(20, np.bool_)) is None


@pytest.mark.parametrize(("rows", "gained", "least"), [(5, 0, None), (40, 0, 6 / 40), (400, 100, 2.8 * 0.0217)])
def test_the_minimum_detectable_gain_follows_from_the_standard_error(
    rows: int, gained: int, least: float | None
) -> None:
    found = paired(answered(0, rows), answered(gained, rows)).detectable("before", "after", EXACT)
    assert found == (None if least is None else pytest.approx(least, rel=0.05))


def test_the_minimum_detectable_gain_is_significant_in_four_of_five_cases() -> None:
    source, shown = np.random.default_rng(0), 0
    least = paired(answered(0, 100), answered(10, 100)).detectable("before", "after", EXACT)
    assert least
    for _ in range(200):
        after = scored([["yes" if hit else "no" for hit in source.random(100) < least]], ["yes"] * 100, (), [EXACT])
        change = paired(answered(0, 100), after).change("before", "after", EXACT)
        shown += bool(change and change.sign > 0)
    assert shown >= 150
