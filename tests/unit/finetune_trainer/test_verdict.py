"""Whether tuning was worth it: what the sentence says, and when it says that nobody can know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.evaluate import Measured
from finetune_trainer.verdict import Outcome, compare, loss_interval, mcnemar, percent
from tests.unit.finetune_trainer.tiny import measured


def rows(exact: int, of: int, loss: float) -> Measured:
    """`of` rows around this loss, the first `exact` of them right."""
    return measured([loss + 0.01 * (i % 7) for i in range(of)], [i < exact for i in range(of)])


def test_better_is_said_with_the_numbers() -> None:
    found = compare(rows(0, 60, 2.09), rows(57, 60, 0.07), seed=0)
    assert found.outcome is Outcome.BETTER
    assert found.evaluation.verdict == (
        "Exact match on 60 held-out rows rose from 0% to 95%, perplexity fell from 8.32 to 1.1: "
        "tuning was worth it over the base model."
    )
    assert (found.gained, found.lost) == (57, 0)


def test_worse_is_said_as_such() -> None:
    found = compare(rows(50, 60, 0.5), rows(20, 60, 1.5), seed=0)
    assert found.outcome is Outcome.WORSE
    assert "fell from 83.3% to 33.3%" in (found.evaluation.verdict or "")
    assert (found.evaluation.verdict or "").endswith("tuning made the model worse, keep the base model.")


def test_a_lower_loss_alone_is_not_called_worth_it() -> None:
    found = compare(rows(0, 60, 2.0), rows(0, 60, 1.0), seed=0)
    assert found.outcome is Outcome.LIKELIER
    assert "stayed at 0%" in (found.evaluation.verdict or "")
    assert "likelier, but no more of them come out word for word" in (found.evaluation.verdict or "")


def test_a_higher_loss_with_the_same_matches_is_worse() -> None:
    assert compare(rows(10, 60, 1.0), rows(10, 60, 2.0), seed=0).outcome is Outcome.WORSE


def test_a_gain_inside_the_noise_is_called_noise() -> None:
    base = measured([1.0, 3.0, 2.0, 1.5] * 5, [False] * 20)
    tuned = measured([3.0, 1.0, 1.5, 2.0] * 5, [i < 3 for i in range(20)])
    found = compare(base, tuned, seed=0)
    assert found.outcome is Outcome.NOISE
    assert "rose from 0% to 15%" in (found.evaluation.verdict or "")
    assert "inside the noise (McNemar's exact test p = 0.25;" in (found.evaluation.verdict or "")


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    # The last as scipy.stats.binomtest(9, 12).pvalue gives it.
    [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (9, 3, 0.1459961)],
)
def test_mcnemars_exact_test(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p_value)
    assert mcnemar(lost, gained) == pytest.approx(p_value)


def test_the_bootstrap_pairs_rows() -> None:
    # Rows differ a hundredfold, but every one got better by 0.1: unpaired, that would drown.
    base = measured([0.1 * i**2 for i in range(40)], [False] * 40)
    tuned = measured([0.1 * i**2 - 0.1 for i in range(40)], [False] * 40)
    assert loss_interval(base, tuned, seed=0) == pytest.approx((-0.1, -0.1))


def test_the_interval_is_the_same_every_time() -> None:
    base, tuned = rows(0, 30, 2.0), rows(3, 30, 1.0)
    assert loss_interval(base, tuned, seed=5) == loss_interval(base, tuned, seed=5)


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int) -> None:
    share = min(part, whole) / whole
    text = percent(share)
    assert (text == "0%") == (share == 0)
    assert (text == "100%") == (share == 1)
    assert float(text[:-1]) == pytest.approx(100 * share, abs=0.1)
