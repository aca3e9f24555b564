"""All results of the evaluation for manifest.json: every metric of every model with its confidence interval, per label
and per field."""

from dataclasses import asdict
from math import isfinite
from typing import Any

from finetune_trainer.statistics.comparison import Comparison, LabelTable
from finetune_trainer.statistics.estimates import Change, MetricEstimate
from finetune_trainer.statistics.metric_rows import MetricRow

DIGITS = 6


def evaluation_table(found: Comparison) -> dict[str, Any]:
    """Returns the comparison as JSON."""
    return {
        "answers": found.answers.kind,
        "rows": found.rows,
        "clusters": found.clusters,
        "gained": found.gained,
        "lost": found.lost,
        "shots": list(found.shots),
        "outcome": found.outcome,
        "metrics": {name: metric_json(row) for name, row in found.metrics.items()},
        "decision": {
            "metric": found.decision.name,
            "rows": found.evidence.rows,
            "clusters": found.evidence.clusters,
            "leaked": found.evidence.leaked,
            **metric_json(found.decision),
        },
        "overChance": _change(found.evidence.chance),
        "leakedOverOthers": _change(found.evidence.gap),
        "detectable": None if found.evidence.detectable is None else _number(found.evidence.detectable),
        "sources": [
            {"name": source.name, "rows": source.rows, **metric_json(source.decision)} for source in found.sources
        ],
        "labels": labels_json(found.labels) if found.labels else None,
        "fields": [asdict(field) for field in found.fields] or None,
    }


def metric_json(row: MetricRow) -> dict[str, Any]:
    """Returns one metric of all models as JSON."""
    return {
        "base": _estimate(row.base),
        "fewShot": _estimate(row.few_shot),
        "tuned": _estimate(row.tuned),
        "overBase": _change(row.over_base),
        "overFewShot": _change(row.over_few_shot),
        "quantized": _estimate(row.quantized),
        "overQuantized": _change(row.over_quantized),
    }


def labels_json(table: LabelTable) -> dict[str, Any]:
    """Returns the scores of each label and the confusion matrix as JSON."""
    confusion = sorted(table.confusion.items(), key=lambda item: (item[0][0], -item[1]))
    return {
        "scores": [asdict(score) for score in table.scores],
        "confusion": [{"expected": right, "given": given, "rows": rows} for (right, given), rows in confusion],
    }


def _estimate(estimate: MetricEstimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "value": _number(estimate.value),
        "low": _number(estimate.interval.low),
        "high": _number(estimate.interval.high),
    }


def _change(change: Change | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "value": _number(change.value),
        "low": _number(change.interval.low),
        "high": _number(change.interval.high),
        "differingClusters": change.differing,
        "pValue": _number(change.p_value),
        "certain": change.sign != 0,
    }


def _number(value: float) -> float | None:
    """Returns six significant digits, or None for a number that JSON cannot express (nan, inf)."""
    return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
