"""The results of the evaluation as status.evaluation: bounded in size, rounded, with the verdict."""

from collections.abc import Sequence
from datetime import UTC, datetime

from finetune_api.status.evaluation import (
    Decision,
    Evaluation,
    GateResult,
    Metrics,
    Quantized,
    RegressionResult,
    SourceResult,
)
from finetune_trainer.statistics.comparison import Comparison, SourceRow
from finetune_trainer.statistics.estimates import MetricEstimate
from finetune_trainer.statistics.measurements import Answer, Measurements

DIGITS = 6


def evaluation_status(
    found: Comparison,
    measured: Measurements,
    *,
    gates: Sequence[GateResult],
    regression: Sequence[RegressionResult],
    verdict: str,
    quantized: Quantized | None = None,
) -> Evaluation:
    """Returns status.evaluation."""
    base, tuned, few_shot = measured.base, measured.tuned, measured.few_shot
    prompted = [answer for draw in few_shot.draws for answer in draw] if few_shot else []
    bounds = [gate.passed for gate in gates] + [result.passed for result in regression]
    return Evaluation(
        rows=found.rows,
        base=metrics_of(found, "base", base.answers),
        few_shot=metrics_of(found, "few_shot", prompted, len(few_shot.draws)) if few_shot else None,
        tuned=metrics_of(found, "tuned", tuned.answers),
        quantized=quantized,
        decision=decision_of(found),
        sources=[source_of(source) for source in found.sources] or None,
        gates=list(gates) or None,
        regression=list(regression) or None,
        passed=all(bounds) if bounds else None,
        verdict=verdict,
        observed_time=datetime.now(UTC),
    )


def metrics_of(found: Comparison, model: str, answers: Sequence[Answer], draws: int = 1) -> Metrics:
    """Returns every metric of one model. `model`: its field in MetricRow. Raises KeyError if the status has no field
    for a metric."""
    values = {name.name.lower(): _value(getattr(row, model)) for name, row in found.metrics.items()}
    if unknown := values.keys() - Metrics.model_fields.keys():
        raise KeyError(f"status.evaluation has no field for {', '.join(sorted(unknown))}")
    truncated = round(sum(answer.truncated for answer in answers) / draws) if answers else None
    return Metrics(**values, truncated=truncated)


def decision_of(found: Comparison) -> Decision:
    """Returns the deciding metric of the tuned model and of the best baseline."""
    row, change = found.decision, found.change
    return Decision(
        metric=row.name,
        rows=found.evidence.rows,
        over=found.baseline,
        baseline=_value(row.of(found.baseline)),
        tuned=_value(row.tuned),
        gain=_rounded(change.value) if change else None,
        low=_rounded(change.interval.low) if change else None,
        high=_rounded(change.interval.high) if change else None,
        outcome=found.outcome,
    )


def source_of(source: SourceRow) -> SourceResult:
    """Returns the deciding metric on the rows of one source."""
    row = source.decision
    interval = row.over_base.interval if row.over_base else None
    return SourceResult(
        name=source.name,
        rows=source.rows,
        base=_value(row.base),
        few_shot=_value(row.few_shot),
        tuned=_value(row.tuned),
        low=_rounded(interval.low) if interval else None,
        high=_rounded(interval.high) if interval else None,
    )


def _value(estimate: MetricEstimate | None) -> float | None:
    return _rounded(estimate.value) if estimate else None


def _rounded(value: float) -> float:
    """Returns six significant digits. More digits would be noise, and a job's status must stay small."""
    return float(f"{value:.{DIGITS}g}")
