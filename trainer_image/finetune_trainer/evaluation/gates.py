"""Gates on the held-out rows, and regression sets: other rows on which the tuned model must not become worse."""

from collections.abc import Mapping, Sequence

from finetune_api.reasons import FailureReason
from finetune_api.spec.evaluation import Baseline, Gate, MetricName, MinGain, RegressionSet
from finetune_api.status.evaluation import Evaluation, GateResult, RegressionResult
from finetune_trainer.handover.prepared import Example
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.statistics.estimates import Paired, scored
from finetune_trainer.statistics.measurements import Measured, texts
from finetune_trainer.statistics.metric_rows import TUNED, MetricRow, metric_row


def gate_results(gates: Sequence[Gate], metrics: Mapping[MetricName, MetricRow]) -> list[GateResult]:
    """Returns one result for each bound of each gate. A metric that could not be measured fails its gate."""
    found = []
    for gate in gates:
        row, gain = metrics[gate.metric], gate.min_gain_over or MinGain()
        bounds = [
            ("Min", gate.min, row.tuned),
            ("Max", gate.max, row.tuned),
            ("MinGainOverBase", gain.base, row.over_base),
            ("MinGainOverFewShot", gain.few_shot, row.over_few_shot),
        ]
        for bound, limit, measured in bounds:
            if limit is not None:
                value = measured.value if measured else None
                passed = value is not None and (value <= limit if bound == "Max" else value >= limit)
                found.append(GateResult(metric=gate.metric, bound=bound, limit=limit, value=value, passed=passed))
    return found


def regression_result(
    wish: RegressionSet, rows: Sequence[Example], base: Measured, tuned: Measured, seed: int
) -> RegressionResult:
    """Compares base and tuned model on one regression set. A metric that could not be measured fails the set."""
    expected, clusters = [row.final_answer for row in rows], [row.cluster for row in rows]
    models = {
        name: scored([texts(model.answers)], expected, (), [wish.metric], model.likelihoods)
        for name, model in ((Baseline.BASE, base), (TUNED, tuned))
    }
    row = metric_row(Paired(models, clusters, seed), wish.metric)
    drop = -row.over_base.value if row.over_base else None
    return RegressionResult(
        name=wish.name,
        metric=wish.metric,
        rows=len(rows),
        base=row.base.value if row.base else None,
        tuned=row.tuned.value if row.tuned else None,
        drop=drop,
        max_drop=wish.max_drop,
        passed=drop is not None and drop <= wish.max_drop,
    )


def require_passed(evaluation: Evaluation) -> None:
    """Raises TrainerFailure EvaluationGateFailed if a gate or a regression set was not passed."""
    if evaluation.passed is False:
        raise TrainerFailure(FailureReason.EVALUATION_GATE_FAILED, shortfall(evaluation))


def shortfall(evaluation: Evaluation) -> str:
    """Returns a sentence for each gate and regression set that was not passed, and then the verdict."""
    found = [_gate_sentence(gate) for gate in evaluation.gates or [] if not gate.passed]
    found += [_regression_sentence(result) for result in evaluation.regression or [] if not result.passed]
    return " ".join([*found, evaluation.verdict or ""]).strip()


def _gate_sentence(gate: GateResult) -> str:
    value = "could not be measured on these rows" if gate.value is None else f"is {gate.value:.4g}"
    what = {
        "MinGainOverBase": f"The gain in {gate.metric} over the base model",
        "MinGainOverFewShot": f"The gain in {gate.metric} over prompting with examples",
    }.get(gate.bound, gate.metric)
    return f"{what} {value}, but its gate requires at {'most' if gate.bound == 'Max' else 'least'} {gate.limit:g}."


def _regression_sentence(result: RegressionResult) -> str:
    if result.drop is None:
        return f"{result.metric} could not be measured on the rows of regression set {result.name}."
    return (
        f"{result.metric} on regression set {result.name} changed from {result.base:.4g} to {result.tuned:.4g}. "
        f"This is {result.drop:.4g} worse, but its maxDrop allows at most {result.max_drop:g}."
    )
