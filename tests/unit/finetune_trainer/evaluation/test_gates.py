"""Gates and regression sets."""

from datetime import UTC, datetime

import pytest

from finetune_api.reasons import FailureReason
from finetune_api.spec.evaluation import Gate, MetricName, MinGain, RegressionSet
from finetune_api.status.evaluation import Evaluation, GateResult, RegressionResult
from finetune_trainer.evaluation.gates import gate_results, regression_result, require_passed
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.statistics.estimates import Change, MetricEstimate
from finetune_trainer.statistics.intervals import Interval
from finetune_trainer.statistics.metric_rows import MetricRow
from tests.unit.finetune_trainer.small_runs import examples, measured

EXACT = MetricName.EXACT_MATCH
NOWHERE = Interval(0, 0)


def row(base: float, tuned: float, few_shot: float | None = None) -> MetricRow:
    def change(before: float | None) -> Change | None:
        return None if before is None else Change(tuned - before, NOWHERE, 10, 0.01)

    few = None if few_shot is None else MetricEstimate(few_shot, NOWHERE)
    return MetricRow(
        EXACT, MetricEstimate(base, NOWHERE), few, MetricEstimate(tuned, NOWHERE), change(base), change(few_shot)
    )


@pytest.mark.parametrize(
    ("gate", "bound", "value", "passed"),
    [
        (Gate(metric=EXACT, min=0.75), "Min", 0.75, True),
        (Gate(metric=EXACT, min=0.76), "Min", 0.75, False),
        (Gate(metric=EXACT, max=0.75), "Max", 0.75, True),
        (Gate(metric=EXACT, max=0.74), "Max", 0.75, False),
        (Gate(metric=EXACT, min_gain_over=MinGain(base=0.5)), "MinGainOverBase", 0.5, True),
        (Gate(metric=EXACT, min_gain_over=MinGain(base=0.6)), "MinGainOverBase", 0.5, False),
        (Gate(metric=EXACT, min_gain_over=MinGain(few_shot=0.25)), "MinGainOverFewShot", 0.25, True),
        (Gate(metric=EXACT, min_gain_over=MinGain(few_shot=0.3)), "MinGainOverFewShot", 0.25, False),
    ],
)
def test_a_gate_passes_at_its_bound(gate: Gate, bound: str, value: float, passed: bool) -> None:
    (found,) = gate_results([gate], {EXACT: row(0.25, 0.75, few_shot=0.5)})
    assert (found.bound, found.value, found.passed) == (bound, value, passed)


def test_every_bound_of_a_gate_has_a_result() -> None:
    gate = Gate(metric=EXACT, min=0.5, max=0.9, min_gain_over=MinGain(base=0.1, few_shot=0.1))
    found = gate_results([gate], {EXACT: row(0.25, 0.75, few_shot=0.5)})
    assert [result.bound for result in found] == ["Min", "Max", "MinGainOverBase", "MinGainOverFewShot"]


def test_a_metric_that_could_not_be_measured_fails_its_gate() -> None:
    gates = [Gate(metric=EXACT, max=1), Gate(metric=EXACT, min_gain_over=MinGain(few_shot=-1))]
    (maximum, _) = gate_results(gates, {EXACT: MetricRow(EXACT, None, None, None, None, None)})
    assert (maximum.value, maximum.passed) == (None, False)
    (_, gain) = gate_results(gates, {EXACT: row(0.25, 0.75)})
    assert (gain.value, gain.passed) == (None, False)


@pytest.mark.parametrize(("max_drop", "passed"), [(0.5, True), (0.25, True), (0.2, False)])
def test_a_regression_set_allows_some_drop(max_drop: float, passed: bool) -> None:
    wish = RegressionSet(uri="s3://acme-data/general.jsonl", name="general", metric=EXACT, max_drop=max_drop)
    base, tuned = (measured([1.0] * 20, [i < right for i in range(20)]) for right in (15, 10))
    found = regression_result(wish, examples([12] * 20), base, tuned, seed=0)
    assert (found.base, found.tuned, found.drop, found.passed) == (0.75, 0.5, 0.25, passed)


def test_a_loss_that_rises_is_a_drop() -> None:
    loss = MetricName.LOSS
    wish = RegressionSet(uri="s3://acme-data/general.jsonl", name="general", metric=loss, max_drop=0.1)
    base, tuned = (measured([loss] * 20, [False] * 20) for loss in (1.0, 1.5))
    found = regression_result(wish, examples([12] * 20), base, tuned, seed=0)
    assert found.drop == pytest.approx(0.5)
    assert not found.passed
    assert regression_result(wish, examples([12] * 20), tuned, base, seed=0).passed


def test_a_failed_gate_is_named_with_value_and_bound() -> None:
    gates = [
        GateResult(metric=EXACT, bound="Min", limit=0.9, value=0.75, passed=False),
        GateResult(metric=EXACT, bound="MinGainOverFewShot", limit=0.1, value=0.05, passed=False),
        GateResult(metric=EXACT, bound="Max", limit=1, value=0.75, passed=True),
    ]
    drop = RegressionResult(
        name="general", metric=EXACT, rows=20, base=0.75, tuned=0.5, drop=0.25, max_drop=0.1, passed=False
    )
    now = datetime.now(UTC)
    evaluation = Evaluation(
        rows=20, gates=gates, regression=[drop], passed=False, verdict="It rose.", observed_time=now
    )
    with pytest.raises(TrainerFailure) as caught:
        require_passed(evaluation)
    assert caught.value.reason is FailureReason.EVALUATION_GATE_FAILED
    assert caught.value.message == (
        "ExactMatch is 0.75, but its gate requires at least 0.9. The gain in ExactMatch over prompting with examples "
        "is 0.05, but its gate requires at least 0.1. ExactMatch on regression set general changed from 0.75 to 0.5. "
        "This is 0.25 worse, but its maxDrop allows at most 0.1. It rose."
    )
    require_passed(Evaluation(rows=20, passed=True, observed_time=now))
    require_passed(Evaluation(rows=20, observed_time=now))
