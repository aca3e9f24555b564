"""What the tuned model has to reach: gates on the held-out rows, and sets of other rows it must not get worse on."""

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
    """Each bound of each gate, with what was measured. What could not be measured passes nothing."""
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
    """What became of one regression set."""
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
    """Raises TrainerFailure EvaluationGateFailed where something fell short."""
    if evaluation.passed is False:
        raise TrainerFailure(FailureReason.EVALUATION_GATE_FAILED, shortfall(evaluation))


def shortfall(evaluation: Evaluation) -> str:
    """What fell short, with its value and its bound, then the verdict."""
    found = [_gate_sentence(gate) for gate in evaluation.gates or [] if not gate.passed]
    found += [_regression_sentence(result) for result in evaluation.regression or [] if not result.passed]
    return " ".join([*found, evaluation.verdict or ""]).strip()


def _gate_sentence(gate: GateResult) -> str:
    value = "cannot be taken on these rows" if gate.value is None else f"is {gate.value:.4g}"
    wanted = {
        "Min": f"at least {gate.limit:g}",
        "Max": f"at most {gate.limit:g}",
        "MinGainOverBase": f"at least {gate.limit:g} better than the base model",
        "MinGainOverFewShot": f"at least {gate.limit:g} better than prompting with examples",
    }[gate.bound]
    what = f"The gain in {gate.metric}" if "Gain" in gate.bound else gate.metric
    return f"{what} {value}; a gate wants it {wanted}."


def _regression_sentence(result: RegressionResult) -> str:
    if result.drop is None:
        return f"{result.metric} cannot be taken on the rows of regression set {result.name}."
    return (
        f"{result.metric} on regression set {result.name} went from {result.base:.4g} to {result.tuned:.4g}, "
        f"{result.drop:.4g} worse; at most {result.max_drop:g} is allowed."
    )
