"""The sentences of the verdict."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.spec.evaluation import MetricName
from finetune_trainer.evaluation.verdict import METRIC_TITLES, Cost, percent, unended, verdict
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from finetune_trainer.statistics.comparison import Comparison, compare
from finetune_trainer.statistics.evidence import Outcome
from finetune_trainer.statistics.measurements import Answer, FewShot, Measured, Measurements
from tests.unit.finetune_trainer.small_runs import example, examples, measured

METRICS = (MetricName.EXACT_MATCH, MetricName.LOSS, MetricName.PERPLEXITY)
COST = Cost(seconds=840.0, tokens=1_200_000)


def rows(exact: int, of: int = 60, loss: float = 1.0) -> Measured:
    """`of` rows with losses near `loss`; the first `exact` answers are right."""
    return measured([loss + 0.01 * (i % 7) for i in range(of)], [i < exact for i in range(of)])


def found(base: Measured, tuned: Measured, prompted: int | None = None) -> Comparison:
    """`prompted`: number of rows that prompting with examples answers right; None without few-shot prompting."""
    count = len(base.answers)
    few_shot = None if prompted is None else FewShot([rows(prompted, count).answers] * 3, (5, 5, 5), 1.0)
    return compare(
        examples([12] * count), Measurements(base, tuned, few_shot), METRICS, Answers(AnswerKind.TEXT), seed=0
    )


def test_a_better_model_is_reported_with_gain_interval_baseline_and_cost() -> None:
    assert verdict(found(rows(0), rows(57)), COST) == (
        "Tuning was worth it. Exact match on 60 held-out rows rose from 0% for the base model to 95% for the tuned "
        "model. The gain is +95.0 points (95% confidence interval +88.3 to +100.0). Training took 14 min 00 s on "
        "1,200,000 tokens."
    )


def test_the_base_model_is_named_with_its_number_format() -> None:
    four_bit = "the base model in 4 bits"
    assert "from 0% for the base model in 4 bits to 95% for" in verdict(found(rows(0), rows(57)), COST, four_bit)
    said = verdict(found(rows(0), rows(57), prompted=20), COST, four_bit)
    assert "from 33.3% for the base model in 4 bits prompted with examples to 95% for" in said
    assert verdict(found(rows(57), rows(0)), COST, four_bit).startswith(
        "Tuning made the model worse. Keep the base model in 4 bits. "
    )


def test_the_base_model_in_4_bits_is_named_if_it_is_the_best_baseline() -> None:
    base, four_bit, tuned = rows(0, loss=2.0), rows(0, loss=1.5), rows(0, loss=1.0)
    metrics = (MetricName.LOSS, MetricName.PERPLEXITY)
    compared = compare(
        examples([12] * 60), Measurements(base, tuned, quantized=four_bit), metrics, Answers(AnswerKind.TEXT), seed=0
    )
    said = verdict(compared, COST, "the base model in bfloat16")
    assert (
        "Loss (lower is better) on 60 held-out rows fell from 1.53 for the base model in 4 bits to 1.03 for the tuned "
        "model. The gain is +0.5" in said
    )


def test_it_says_whether_prompting_was_enough() -> None:
    said = verdict(found(rows(0), rows(57), prompted=20), COST)
    assert "rose from 33.3% for the base model prompted with examples to 95% for the tuned model" in said
    assert said.startswith("Tuning was worth it. Prompting the base model with 5 examples was not enough. Exact match")
    said = verdict(found(rows(20), rows(57), prompted=10), COST)
    assert "from 33.3% for the base model to 95% for the tuned model" in said
    assert said.startswith(
        "Tuning was worth it. Prompting the base model with 5 examples was not enough (16.7%). Exact match"
    )


def test_the_verdict_calls_prompting_as_good_only_if_enough_rows_show_it() -> None:
    said = verdict(found(rows(0), rows(57), prompted=57), COST)
    assert said.startswith(
        "The tuned model is better than the base model, but prompting the base model with 5 examples works as well and "
        "needs no training. Exact match on 60 held-out rows is 95% for the base model prompted with examples and for "
        "the tuned model. The gain is"
    )
    said = verdict(found(rows(0), rows(57), prompted=54), COST)
    assert said.startswith(
        "The tuned model is better than the base model. 60 test rows are too few to show whether it is also better "
        "than prompting the base model with 5 examples, which needs no training. To find out, measure more test rows "
        "(spec.dataset.test or spec.dataset.split.test, and spec.evaluation.maxRows). Exact match"
    )
    said = verdict(found(rows(0), rows(20), prompted=50), COST)
    assert said.startswith(
        "The tuned model is better than the base model, but prompting the base model with 5 examples works even better "
        "and needs no training. Exact match"
    )
    said = verdict(found(rows(18), rows(20), prompted=50), COST)
    assert said.startswith(
        "Nothing shows that tuning was worth it. Prompting the base model with 5 examples works better and needs no "
        "training. Exact match"
    )


def test_a_worse_model_is_called_worse() -> None:
    said = verdict(found(rows(50), rows(20)), COST)
    assert said.startswith("Tuning made the model worse. Keep the base model. Exact match")
    said = verdict(found(rows(40), rows(20), prompted=50), COST)
    assert said.startswith("Tuning made the model worse. Keep the base model prompted with examples. Exact match")


def partly_leaked(leaked: int, right_before: set[int], right_after: set[int], of: int = 60) -> Comparison:
    """A comparison on `of` rows, of which the first `leaked` leaked. The sets name the rows with a right answer before
    and after tuning."""
    base, tuned = (
        measured([1.0 + 0.01 * (i % 7) for i in range(of)], [i in right for i in range(of)])
        for right in (right_before, right_after)
    )
    held_out = [replace(row, leaked=i < leaked) for i, row in enumerate(examples([12] * of))]
    return compare(held_out, Measurements(base, tuned), METRICS, Answers(AnswerKind.TEXT), seed=0)


def test_if_rows_leaked_the_figure_is_taken_from_the_other_rows() -> None:
    said = verdict(partly_leaked(20, set(), set(range(20)) | set(range(40, 60))), COST)
    assert said.startswith(
        "Tuning was worth it. Exact match on 40 held-out rows rose from 0% for the base model to 50% for the tuned "
        "model. The gain is +50.0"
    )
    assert said.endswith(
        "tokens. 20 more held-out rows are not counted, because a near-duplicate with nearly the same answer is in the "
        "training data."
    )
    said = verdict(partly_leaked(1, set(), set(range(60))), COST)
    assert "1 more held-out row is not counted" in said


def test_a_gain_on_leaked_rows_alone_is_called_a_leak() -> None:
    said = verdict(partly_leaked(20, set(), set(range(20))), COST)
    assert said.startswith(
        "Nothing shows that tuning was worth it. On the 20 held-out rows that leaked, the gain is larger by +100.0 "
        "points (95% confidence interval +100.0 to +100.0): the model memorised their answers. Remove the leaked rows "
        "from the training data, or use other test rows, and run the job again. Exact match on 40 held-out rows is 0% "
        "for the base model and for the tuned model."
    )


def test_if_too_few_rows_are_left_it_says_which_gain_they_would_show() -> None:
    said = verdict(partly_leaked(20, set(), {0, 45}), COST)
    assert said.startswith(
        "Nothing shows that tuning was worth it. The change is not statistically significant. With 40 test rows "
        "(near-duplicates count as one), a gain of 15.0 points or more would likely be significant. To show a smaller "
        "gain, measure more test rows (spec.dataset.test or spec.dataset.split.test, and spec.evaluation.maxRows). "
        "Exact match"
    )
    said = verdict(partly_leaked(55, set(), {0}), COST)
    assert (
        "5 test rows are too few to show any gain. Use at least 6 test rows that are neither leaked nor "
        "near-duplicates of each other." in said
    )


def test_if_all_rows_leaked_the_answer_is_unknown() -> None:
    assert verdict(partly_leaked(60, set(), set(range(60))), COST) == (
        "It is unknown whether tuning was worth it: all 60 held-out rows, or near-duplicates of them, also occur in "
        "the training data with their answers. Use test rows that do not occur in the training data. Training took 14 "
        "min 00 s on 1,200,000 tokens."
    )


def test_answers_that_fit_other_rows_as_well_are_reported_first_for_every_baseline() -> None:
    teams = [("billing", "login", "shipping")[i % 3] for i in range(120)]
    given = [teams[(7 * i + i // 5) % 120] for i in range(120)]
    rows = [example(12, 4, i, texts=(f"question {i}", team)) for i, team in enumerate(teams)]
    models = {
        name: replace(measured([1.0] * 120, [False] * 120), answers=[Answer(text, False, False) for text in texts])
        for name, texts in (("base", ["?"] * 120), ("few", given[1:] + given[:1]), ("tuned", given))
    }
    labels = Answers(AnswerKind.LABEL, ("billing", "login", "shipping"))
    few_shot = FewShot([models["few"].answers], (5,), 1.0)
    for prompted in (None, few_shot):
        found_ = compare(rows, Measurements(models["base"], models["tuned"], prompted), METRICS, labels, seed=0)
        said = verdict(found_, COST)
        assert found_.outcome is Outcome.UNRELATED
        assert said.startswith("The tuned model's answers fit other rows' questions as well as their own")
        assert "Check that the prompt and the answer of each training row belong together" in said


def test_a_lower_loss_alone_is_not_called_worth_it() -> None:
    said = verdict(found(rows(0, loss=2.0), rows(0, loss=1.0)), COST)
    assert said.startswith(
        "Tuning did not improve the answers. Only the loss fell: the right answers became more likely. Exact match on "
        "60 held-out rows is 0% for the base model and for the tuned model."
    )


@pytest.mark.parametrize(
    ("after", "start"),
    [
        (0.995, "The gain is statistically significant but small. Decide whether tuning was worth it. Loss"),
        (0.985, "Tuning was worth it. Loss"),
    ],
)
def test_a_significant_but_small_gain_is_not_called_worth_it(after: float, start: str) -> None:
    base, tuned = (measured([loss + 0.001 * (i % 7) for i in range(60)], []) for loss in (1.0, after))
    text = compare(examples([12] * 60), Measurements(base, tuned), (MetricName.LOSS,), Answers(AnswerKind.TEXT), seed=0)
    assert verdict(text, COST).startswith(start)


def test_an_insignificant_gain_is_called_not_significant() -> None:
    said = verdict(found(rows(10), rows(13)), COST)
    assert said.startswith(
        "Nothing shows that tuning was worth it. The change is not statistically significant. Exact match on 60 "
        "held-out rows rose from 16.7% for the base model to 21.7% for the tuned model."
    )
    said = verdict(found(rows(10, loss=2.0), rows(13, loss=2.3)), COST)
    assert said.startswith(
        "Nothing shows that tuning was worth it. The change is not statistically significant, and the right answers "
        "became less likely. Exact match"
    )


def test_an_existing_adapter_has_no_cost() -> None:
    said = verdict(found(rows(0), rows(57)), None)
    assert "took" not in said
    assert said.startswith("The adapter was worth it. Exact match")


def test_gpu_hours_and_their_price_are_reported_if_known() -> None:
    assert str(Cost(seconds=840.0, tokens=900, gpu_hours=0.25, price="0.88")) == (
        "14 min 00 s on 900 tokens, 0.25 GPU hours including the evaluation, at a price of 0.88"
    )


def test_every_metric_has_a_title() -> None:
    assert set(METRIC_TITLES) == set(MetricName)


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int) -> None:
    share = min(part, whole) / whole
    text = percent(share)
    assert (text == "0%") == (share == 0)
    assert (text == "100%") == (share == 1)
    assert float(text[:-1]) == pytest.approx(100 * share, abs=0.1)


def test_answers_that_never_end_are_reported_with_the_remedy() -> None:
    cut, whole = Answer("and on", truncated=True, matches=False), Answer("done", truncated=False, matches=True)
    assert unended([], 96, untrained=True) == unended([cut, whole], 96, untrained=True) == ""
    said = unended([cut] * 50, 96, untrained=False)
    assert said.startswith(" No answer of the tuned model ended: all 50 were cut at 96 tokens. Raise spec.evaluation.")
    assert "never trained to end an answer. Set spec.method.lora.modulesToSave" in unended(
        [cut] * 50, 96, untrained=True
    )
