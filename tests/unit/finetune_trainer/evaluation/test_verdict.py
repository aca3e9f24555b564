"""Whether tuning was worth it: what the sentence says."""

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
    """`of` rows around this loss, the first `exact` of them right."""
    return measured([loss + 0.01 * (i % 7) for i in range(of)], [i < exact for i in range(of)])


def found(base: Measured, tuned: Measured, prompted: int | None = None) -> Comparison:
    """`prompted`: rows that are right with examples."""
    count = len(base.answers)
    few_shot = None if prompted is None else FewShot([rows(prompted, count).answers] * 3, (5, 5, 5), 1.0)
    return compare(
        examples([12] * count), Measurements(base, tuned, few_shot), METRICS, Answers(AnswerKind.TEXT), seed=0
    )


def test_better_is_said_with_gain_interval_baseline_and_cost() -> None:
    assert verdict(found(rows(0), rows(57)), COST) == (
        "Exact match on 60 held-out rows rose from 0% to 95% against the base model, a gain of +95.0 points (95% "
        "interval +88.3 to +100.0) (training took 14 min 00 s on 1,200,000 tokens): tuning was worth it."
    )


def test_the_base_model_is_called_what_was_measured() -> None:
    four_bit = "the base model in 4 bits"
    assert "against the base model in 4 bits, a gain" in verdict(found(rows(0), rows(57)), COST, four_bit)
    said = verdict(found(rows(0), rows(57), prompted=20), COST, four_bit)
    assert "against prompting the base model in 4 bits with examples, a gain" in said
    assert verdict(found(rows(57), rows(0)), COST, four_bit).endswith("keep the base model in 4 bits.")


def test_the_base_model_in_4_bits_is_named_where_it_is_the_best_before_tuning() -> None:
    base, four_bit, tuned = rows(0, loss=2.0), rows(0, loss=1.5), rows(0, loss=1.0)
    metrics = (MetricName.LOSS, MetricName.PERPLEXITY)
    compared = compare(
        examples([12] * 60), Measurements(base, tuned, quantized=four_bit), metrics, Answers(AnswerKind.TEXT), seed=0
    )
    said = verdict(compared, COST, "the base model in bfloat16")
    assert "Loss on 60 held-out rows fell from 1.53 to 1.03 against the base model in 4 bits, a gain of +0.5" in said


def test_it_says_whether_prompting_would_have_done() -> None:
    said = verdict(found(rows(0), rows(57), prompted=20), COST)
    assert "rose from 33.3% to 95% against prompting the base model with examples" in said
    assert said.endswith("tuning was worth it, and prompting with 5 examples would not have done.")
    said = verdict(found(rows(20), rows(57), prompted=10), COST)
    assert "from 33.3% to 95% against the base model" in said
    assert said.endswith("tuning was worth it, and prompting with 5 examples (16.7%) would not have done.")


def test_prompting_is_said_to_do_as_well_only_where_the_rows_can_tell() -> None:
    said = verdict(found(rows(0), rows(57), prompted=57), COST)
    assert said.endswith("better than the base model, but prompting it with 5 examples does as well, for no training.")
    said = verdict(found(rows(0), rows(57), prompted=54), COST)
    assert said.endswith(
        "better than the base model, but 60 rows cannot tell it from prompting it with 5 examples, which takes no "
        "training."
    )
    said = verdict(found(rows(0), rows(20), prompted=50), COST)
    assert said.endswith("but prompting it with 5 examples is better still, for no training.")
    said = verdict(found(rows(18), rows(20), prompted=50), COST)
    assert said.endswith(
        "nothing shows that tuning was worth it, and prompting it with 5 examples is better, for no training."
    )


def test_worse_is_said_as_such() -> None:
    assert verdict(found(rows(50), rows(20)), COST).endswith("tuning made the model worse, keep the base model.")
    said = verdict(found(rows(40), rows(20), prompted=50), COST)
    assert said.endswith("tuning made the model worse, keep prompting the base model with examples.")


def partly_leaked(leaked: int, right_before: set[int], right_after: set[int], of: int = 60) -> Comparison:
    """Of `of` rows the first `leaked` leaked; which of them are right before and after."""
    base, tuned = (
        measured([1.0 + 0.01 * (i % 7) for i in range(of)], [i in right for i in range(of)])
        for right in (right_before, right_after)
    )
    held_out = [replace(row, leaked=i < leaked) for i, row in enumerate(examples([12] * of))]
    return compare(held_out, Measurements(base, tuned), METRICS, Answers(AnswerKind.TEXT), seed=0)


def test_where_rows_leaked_the_figure_is_that_of_the_others() -> None:
    said = verdict(partly_leaked(20, set(), set(range(20)) | set(range(40, 60))), COST)
    assert said.startswith(
        "Exact match on 40 held-out rows rose from 0% to 50% against the base model, a gain of +50.0"
    )
    assert said.endswith(
        "tuning was worth it. 20 more held-out rows do not count, because a near-duplicate with nearly the same answer "
        "is in the training data."
    )


def test_a_gain_on_leaked_rows_alone_is_called_a_leak() -> None:
    said = verdict(partly_leaked(20, set(), set(range(20))), COST)
    assert "on 40 held-out rows stayed at 0%" in said
    assert "nothing shows that tuning was worth it. On the 20 held-out rows that leaked the gain is larger by" in said
    assert (
        "larger by +100.0 points (95% interval +100.0 to +100.0): their answers were learned by heart. Remove" in said
    )


def test_where_too_few_rows_are_left_it_says_what_they_could_have_shown() -> None:
    said = verdict(partly_leaked(20, set(), {0, 45}), COST)
    assert (
        "inside the noise, so nothing shows that tuning was worth it. A gain of 15.0 points or more would likely "
        in said
    )
    assert "have shown in 40 groups of test rows: name more to show a smaller one. 20 more held-out rows do not" in said
    said = verdict(partly_leaked(55, set(), {0}), COST)
    assert "5 groups of test rows can show no gain at all: name at least 6 that did not leak." in said


def test_where_all_rows_leaked_nothing_can_be_told() -> None:
    assert verdict(partly_leaked(60, set(), set(range(60))), COST) == (
        "All 60 held-out rows or near-duplicates of them also occur in the training data with their answers, so "
        "nothing can be told (training took 14 min 00 s on 1,200,000 tokens): name test rows that do not."
    )


def test_answers_that_fit_other_rows_as_well_are_told_first_whatever_they_are_compared_with() -> None:
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
    assert "stayed at 0%" in said
    assert said.endswith("the right answers became likelier, but those the model gives are no better.")


@pytest.mark.parametrize(("after", "end"), [(0.995, "is for you to say."), (0.985, "tuning was worth it.")])
def test_a_gain_that_is_sure_but_small_is_not_called_worth_it(after: float, end: str) -> None:
    base, tuned = (measured([loss + 0.001 * (i % 7) for i in range(60)], []) for loss in (1.0, after))
    text = compare(examples([12] * 60), Measurements(base, tuned), (MetricName.LOSS,), Answers(AnswerKind.TEXT), seed=0)
    assert verdict(text, COST).endswith(end)


def test_a_gain_inside_the_noise_is_called_noise() -> None:
    said = verdict(found(rows(10), rows(13)), COST)
    assert "rose from 16.7% to 21.7%" in said
    assert said.endswith("inside the noise, so nothing shows that tuning was worth it.")
    said = verdict(found(rows(10, loss=2.0), rows(13, loss=2.3)), COST)
    assert said.endswith(
        "inside the noise, while the right answers became less likely, so nothing shows that tuning was worth it."
    )


def test_an_adapter_that_was_there_already_has_no_cost() -> None:
    said = verdict(found(rows(0), rows(57)), None)
    assert "took" not in said
    assert said.endswith("the adapter was worth it.")


def test_gpu_hours_and_their_price_are_said_where_they_are_known() -> None:
    assert str(Cost(seconds=840.0, tokens=900, gpu_hours=0.25, price="0.88")) == (
        "14 min 00 s on 900 tokens, 0.25 GPU hours with its evaluation, at a price of 0.88"
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


def test_answers_that_never_end_are_told_with_what_to_change() -> None:
    cut, whole = Answer("and on", truncated=True, matches=False), Answer("done", truncated=False, matches=True)
    assert unended([], 96, untrained=True) == unended([cut, whole], 96, untrained=True) == ""
    said = unended([cut] * 50, 96, untrained=False)
    assert said.startswith(" No answer of the tuned model came to an end: all 50 were cut at 96 tokens; raise")
    assert "never trained to end an answer; set method.lora.modulesToSave" in unended([cut] * 50, 96, untrained=True)
