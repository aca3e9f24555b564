"""Tables of the report that compare the models. Every figure is a figure of the evaluation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.method import MethodType
from finetune_api.status.evaluation import GateResult, RegressionResult
from finetune_trainer.evaluation.verdict import METRIC_TITLES, percent, shown
from finetune_trainer.metrics.json_fields import FieldCount
from finetune_trainer.metrics.values import LIKELIHOODS, LOWER_IS_BETTER
from finetune_trainer.results.chart import Whiskers, whiskers
from finetune_trainer.results.results import Results
from finetune_trainer.statistics.comparison import Comparison, LabelTable
from finetune_trainer.statistics.estimates import Change, MetricEstimate
from finetune_trainer.statistics.evidence import Outcome
from finetune_trainer.statistics.metric_rows import MetricRow

TONES = {
    Outcome.BETTER: "good-news",
    Outcome.PROMPTING: "some-news",
    Outcome.LEAKED: "bad-news",
    Outcome.LIKELIER: "some-news",
    Outcome.UNRELATED: "bad-news",
    Outcome.WORSE: "bad-news",
    Outcome.NOISE: "no-news",
}
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
BOUNDS = {
    "Min": "at least",
    "Max": "at most",
    "MinGainOverBase": "gain over base at least",
    "MinGainOverFewShot": "gain over few-shot at least",
}
LABELS_CROSSED = 12
"""Largest number of labels in a confusion matrix, because a larger one does not fit the page. With more labels, this
many of the most frequent confusions are listed instead."""


@dataclass(frozen=True)
class Cell:
    """A figure with its confidence interval. `tone`: a CSS class of the page."""

    text: str
    interval: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """A table row: a name and its figures. `deciding`: whether the row is highlighted as the deciding metric."""

    name: str
    cells: Sequence[Cell]
    deciding: bool = False


@dataclass(frozen=True)
class Table:
    """A table of figures. The first column heading belongs to the rows' names."""

    columns: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    note: str = ""


def tone(results: Results) -> str:
    """Returns the CSS class for the verdict."""
    return "bad-news" if results.evaluation.passed is False else TONES[results.comparison.outcome]


def metrics_table(results: Results) -> Table:
    """Returns the table of all metrics of all models, and the changes by tuning."""
    found, evaluation = results.comparison, results.evaluation
    rows = [
        Row(METRIC_TITLES[row.name], _cells(row, bool(found.shots)), row.name is found.decision.name)
        for row in found.metrics.values()
    ]
    models = [evaluation.base, *([evaluation.few_shot] if found.shots else []), evaluation.tuned]
    cut = [metrics.truncated if metrics else None for metrics in models]
    if any(count is not None for count in cut):
        counts = [Cell(DASH if count is None else f"{count:,}") for count in cut]
        changes = [Cell("")] * (len(_columns(found)) - len(cut) - 1)
        limit = results.prepared.resolved.max_new_tokens
        rows.append(Row(f"Answers cut off at {limit:,} tokens", [*counts, *changes]))
    return Table(_columns(found), rows, note=_note(results))


def other_tables(results: Results) -> list[Table]:
    """Returns the other tables of this run: leaked and clean rows, sources, labels, fields, gates, regression sets."""
    found, evaluation = results.comparison, results.evaluation
    tables = []
    for head, parts in (("Rows", found.apart), ("Source", found.sources)):
        if parts:
            rows = [Row(part.name, _cells(part.decision, bool(found.shots))) for part in parts]
            by = "leaked and clean rows" if parts is found.apart else "source"
            title = f"{METRIC_TITLES[found.decision.name]} by {by}"
            tables.append(Table([head, *_columns(found)[1:]], rows, title))
    if found.labels:
        tables += [_labels(found.labels), *_confusions(found.labels)]
    if found.fields:
        tables.append(_fields(found.fields))
    if evaluation.gates:
        tables.append(Table(["Gate", "Required", "Measured", ""], [_gate(gate) for gate in evaluation.gates], "Gates"))
    if evaluation.regression:
        columns = ["Set", "Base", "Tuned", "Worse by", "Allowed", ""]
        title = "Regression sets"
        tables.append(Table(columns, [_regression(each) for each in evaluation.regression], title))
    return tables


def deciding_intervals(found: Comparison) -> Whiskers | None:
    """Returns the chart of the deciding metric of every model with its interval. None with fewer than two models."""
    row = found.decision
    models = {"Base": row.base, "Base, 4-bit": row.quantized, "Few-shot": row.few_shot, "Tuned": row.tuned}
    rows = [(name, each.value, *each.interval) for name, each in models.items() if each]
    return whiskers(rows, lambda value: shown(row.name, value)) if len(rows) > 1 else None


def confusion_table(found: Comparison) -> Table | None:
    """Returns the tuned model's confusion matrix. None without labels, or with more than LABELS_CROSSED of them."""
    if found.labels is None or len(found.labels.scores) > LABELS_CROSSED:
        return None
    counts = found.labels.confusion
    expected = [score.label for score in found.labels.scores]
    given = [*expected, *sorted({label for _, label in counts} - set(expected))]
    rows = [
        Row(label, [_crossed(counts.get((label, other), 0), label == other) for other in given]) for label in expected
    ]
    return Table(["Expected \\ answered", *given], rows, "Confusion matrix of the tuned model")


def _confusions(labels: LabelTable) -> list[Table]:
    """Returns the table of the most frequent confusions, if there are too many labels for a confusion matrix."""
    if len(labels.scores) <= LABELS_CROSSED:
        return []
    wrong = Counter({pair: rows for pair, rows in labels.confusion.items() if pair[0] != pair[1]})
    rows = [
        Row(expected, [Cell(given), Cell(f"{count:,}")])
        for (expected, given), count in wrong.most_common(LABELS_CROSSED)
    ]
    return (
        [Table(["Expected", "Answered", "Rows"], rows, "Most frequent confusions of the tuned model")] if rows else []
    )


def _columns(found: Comparison) -> list[str]:
    if found.shots:
        return ["Metric", "Base", "Few-shot", "Tuned", "Over base", "Over few-shot"]
    return ["Metric", "Base", "Tuned", "Over base"]


def _cells(row: MetricRow, prompted: bool) -> list[Cell]:
    few_shot = [_value(row.name, row.few_shot)] if prompted else []
    over_few_shot = [_change(row.name, row.over_few_shot)] if prompted else []
    return [
        _value(row.name, row.base),
        *few_shot,
        _value(row.name, row.tuned, "main"),
        _change(row.name, row.over_base),
        *over_few_shot,
    ]


def _value(name: MetricName, estimate: MetricEstimate | None, tone: str = "") -> Cell:
    if estimate is None:
        return Cell(DASH)
    low, high = (shown(name, end) for end in estimate.interval)
    return Cell(shown(name, estimate.value), f"{low} to {high}", tone)


def _change(name: MetricName, change: Change | None) -> Cell:
    """Returns the cell for the change of a metric. Only statistically significant changes get a colour."""
    if change is None:
        return Cell(DASH)
    sign = -1 if name in LOWER_IS_BETTER else 1
    low, high = sorted(sign * end for end in change.interval)
    tone = {1: "good", -1: "bad"}.get(change.sign, "soft")
    return Cell(_moved(name, sign * change.value), f"{_moved(name, low)} to {_moved(name, high)}", tone)


def _moved(name: MetricName, change: float) -> str:
    text = f"{change:+,.3g}" if name in LIKELIHOODS else f"{100 * change:+.1f}"
    return text.replace("-", MINUS)


def _labels(labels: LabelTable) -> Table:
    rows = [
        Row(
            score.label,
            [Cell(f"{score.expected:,}"), *map(Cell, map(percent, (score.precision, score.recall, score.f1)))],
        )
        for score in labels.scores
    ]
    return Table(["Label", "Rows", "Precision", "Recall", "F1"], rows, "Scores of the tuned model by label")


def _fields(fields: Sequence[FieldCount]) -> Table:
    rows = [
        Row(
            field.path,
            [Cell(f"{field.expected:,}"), Cell(f"{field.right:,}"), Cell(percent(field.right / field.expected))],
        )
        for field in fields
    ]
    return Table(["Field", "Expected", "Correct", "Share"], rows, "Correct JSON fields of the tuned model")


def _gate(gate: GateResult) -> Row:
    name = METRIC_TITLES[gate.metric]
    measured = DASH if gate.value is None else f"{gate.value:.4g}".replace("-", MINUS)
    return Row(name, [Cell(f"{BOUNDS[gate.bound]} {gate.limit:g}"), Cell(measured, tone="main"), _passed(gate.passed)])


def _regression(found: RegressionResult) -> Row:
    values = [DASH if v is None else f"{v:.4g}".replace("-", MINUS) for v in (found.base, found.tuned, found.drop)]
    cells = [*map(Cell, values), Cell(f"{found.max_drop:g}"), _passed(found.passed)]
    return Row(f"{found.name} ({METRIC_TITLES[found.metric]}, {found.rows:,} rows)", cells)


def _passed(passed: bool) -> Cell:
    return Cell("✓ passed", tone="good") if passed else Cell("✗ failed", tone="bad")


def _crossed(count: int, right: bool) -> Cell:
    return Cell(f"{count:,}" if count else "·", tone="right" if right else "wrong" if count else "soft")


def _note(results: Results) -> str:
    found, resolved = results.comparison, results.prepared.resolved
    quantized = results.evaluation.quantized
    if quantized and quantized.loss_change is not None:
        weights = "The base model was measured in bfloat16, the tuned model over 4-bit weights."
    elif resolved.method is MethodType.QLORA:
        weights = "All models were measured over 4-bit weights."
    else:
        weights = "All models were measured in bfloat16."
    examples = " For Few-shot, examples were added before each prompt." if found.shots else ""
    return (
        f"Rows that only the tuned model answers word for word: {found.gained:,}. "
        f"Rows that only the base model answers word for word: {found.lost:,}. "
        "Below each figure is its 95% confidence interval. For shares of rows, the interval is Wilson's. "
        f"For other figures, the interval is from a paired bootstrap over {found.clusters:,} groups of rows. "
        "Near-duplicates are in the same group. Changes in colour are statistically significant. "
        "Changes of shares are in percentage points. "
        f"All models answered the same prompts with greedy decoding.{examples} {weights}"
    )
