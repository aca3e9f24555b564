"""Base, prompted and tuned model side by side on the same held-out rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_trainer.handover.prepared import Example
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from finetune_trainer.metrics.json_fields import FieldCount, field_counts
from finetune_trainer.metrics.labels import LabelScore, confusion, label_counts, label_scores
from finetune_trainer.metrics.values import LIKELIHOODS
from finetune_trainer.statistics.estimates import Change, Paired, Scored, scored
from finetune_trainer.statistics.evidence import Evidence, Outcome, deciding, evidence_of
from finetune_trainer.statistics.measurements import Answer, Measurements, texts
from finetune_trainer.statistics.metric_rows import QUANTIZED, TUNED, MetricRow, metric_row

MOST_LABELS = 500
"""Labels told apart: those learned, then the most frequent of those only expected. Memory is rows times labels."""


@dataclass(frozen=True)
class SourceRow:
    """The deciding metric on a part of the rows, such as one source's."""

    name: str
    rows: int
    decision: MetricRow


@dataclass(frozen=True)
class LabelTable:
    """The tuned model's answers, label by label."""

    scores: Sequence[LabelScore]
    confusion: Mapping[tuple[str, str], int]
    """Rows by (label expected, label given)."""


@dataclass(frozen=True)
class Comparison:
    """All that is known of the models on the held-out rows."""

    rows: int
    clusters: int
    """Groups of rows that are no near copies of each other: the independent pieces of evidence."""
    answers: Answers
    metrics: Mapping[MetricName, MetricRow]
    """The first one decides."""
    evidence: Evidence
    """The rows that decide."""
    gained: int
    """Rows only the tuned model answers word for word."""
    lost: int
    """Rows only the base model does."""
    sources: Sequence[SourceRow]
    """Where the rows that decide come from several sources."""
    apart: Sequence[SourceRow]
    """Where some rows leaked: the rows that decide, and the others."""
    labels: LabelTable | None
    """Where the answers are labels."""
    fields: Sequence[FieldCount]
    """Where the answers are JSON: the fields of the tuned model's."""
    shots: Sequence[int]
    """Examples before each prompt, draw by draw; none where few-shot was not measured."""

    @property
    def decision(self) -> MetricRow:
        """The deciding metric, on the rows that decide."""
        return self.evidence.decision

    @property
    def baseline(self) -> str:
        """The best of base, few-shot and QUANTIZED by the deciding metric."""
        return self.evidence.baseline

    @property
    def change(self) -> Change | None:
        """The deciding metric from the better baseline to the tuned model."""
        return self.evidence.change

    @property
    def outcome(self) -> Outcome:
        """What tuning came to."""
        return self.evidence.outcome


def compare(
    rows: Sequence[Example],
    measured: Measurements,
    metrics: Sequence[MetricName],
    answers: Answers,
    *,
    seed: int,
    sources: Sequence[str] = (),
) -> Comparison:
    """Compares models measured on `rows`, at least one, by `metrics`, of which the first decides. `sources`: the names
    of what Example.mixture counts."""
    base, tuned, few_shot, quantized = measured.base, measured.tuned, measured.few_shot, measured.quantized
    expected, asking = [row.final_answer for row in rows], [bool(row.prompt) for row in rows]
    answers = with_expected(answers, expected)
    likelihoods = {Baseline.BASE: base.likelihoods, TUNED: tuned.likelihoods}
    draws: dict[str, Sequence[Sequence[Answer]]] = {Baseline.BASE: [base.answers], TUNED: [tuned.answers]}
    if few_shot:
        draws[Baseline.FEW_SHOT] = few_shot.draws
    models = {
        model: scored(list(map(texts, given)), expected, answers.labels, metrics, likelihoods.get(model), asking)
        for model, given in draws.items()
    }
    if quantized:
        by_likelihood = [name for name in metrics if name in LIKELIHOODS]
        models[QUANTIZED] = scored([[]], expected, answers.labels, by_likelihood, quantized.likelihoods)
    paired = Paired(models, [row.cluster for row in rows], seed)
    table = {name: metric_row(paired, name) for name in metrics}
    pairs = list(zip(base.answers, tuned.answers, strict=True))
    return Comparison(
        rows=len(rows),
        clusters=len({row.cluster for row in rows}),
        answers=answers,
        metrics=table,
        evidence=evidence_of(models, metrics[0], rows, texts(tuned.answers), answers.labels, seed),
        gained=sum(after.matches and not before.matches for before, after in pairs),
        lost=sum(before.matches and not after.matches for before, after in pairs),
        sources=by_source(models, metrics[0], rows, sources, seed),
        apart=by_leak(models, metrics[0], rows, seed),
        labels=label_table(texts(tuned.answers), expected, answers) if tuned.answers else None,
        fields=field_counts(zip(texts(tuned.answers), expected, strict=True))
        if answers.kind is AnswerKind.JSON and tuned.answers
        else [],
        shots=few_shot.shots if few_shot else (),
    )


def with_expected(answers: Answers, expected: Sequence[str]) -> Answers:
    """Labels together with those that only held-out rows have: a model that never learned one is wrong about it."""
    if answers.kind is not AnswerKind.LABEL:
        return answers
    new = Counter(text.strip() for text in expected if text.strip() not in set(answers.labels))
    return replace(answers, labels=(*answers.labels, *(text for text, _ in new.most_common()))[:MOST_LABELS])


def by_source(
    models: Mapping[str, Scored], name: MetricName, rows: Sequence[Example], sources: Sequence[str], seed: int
) -> list[SourceRow]:
    """The deciding metric on each source's rows that decide, where there are several sources with such rows."""
    clean = deciding(rows)
    parts = [(source, [i for i in clean if rows[i].mixture == number]) for number, source in enumerate(sources)]
    return _parts(models, name, rows, parts, seed)


def by_leak(models: Mapping[str, Scored], name: MetricName, rows: Sequence[Example], seed: int) -> list[SourceRow]:
    """The deciding metric on the rows that decide and on the others, where there are both."""
    clean = deciding(rows)
    others = sorted(set(range(len(rows))) - set(clean))
    parts = [(f"{len(clean):,} that did not leak", clean), (f"{len(others):,} that leaked", others)]
    return _parts(models, name, rows, parts, seed)


def _parts(
    models: Mapping[str, Scored],
    name: MetricName,
    rows: Sequence[Example],
    parts: Sequence[tuple[str, Sequence[int]]],
    seed: int,
) -> list[SourceRow]:
    """The metric on each part that has rows, where several have."""
    there = [(title, mine) for title, mine in parts if mine]
    found = []
    for title, mine in there if len(there) > 1 else []:
        own = {model: one.part(mine, [name]) for model, one in models.items() if name in one.statistics}
        paired = Paired(own, [rows[i].cluster for i in mine], seed)
        found.append(SourceRow(title, len(mine), metric_row(paired, name)))
    return found


def label_table(given: Sequence[str], expected: Sequence[str], answers: Answers) -> LabelTable | None:
    """Label by label, where the answers are labels."""
    if answers.kind is not AnswerKind.LABEL:
        return None
    wanted = [text.strip() for text in expected]
    totals = label_counts(given, wanted, answers.labels).sum(axis=0)
    return LabelTable(label_scores(totals, answers.labels), Counter(confusion(given, wanted, answers.labels)))
