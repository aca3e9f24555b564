"""Compares the base model, the prompted base model and the tuned model on the same held-out rows."""

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
"""Most labels that are distinguished: first the labels of the training rows, then the most frequent labels that only
test rows have. Memory grows with rows times labels."""


@dataclass(frozen=True)
class SourceRow:
    """The deciding metric on a part of the rows, such as the rows of one source."""

    name: str
    rows: int
    decision: MetricRow


@dataclass(frozen=True)
class LabelTable:
    """The tuned model's scores for each label."""

    scores: Sequence[LabelScore]
    confusion: Mapping[tuple[str, str], int]
    """Number of rows by (expected label, given label)."""


@dataclass(frozen=True)
class Comparison:
    """All results of the models on the held-out rows."""

    rows: int
    clusters: int
    """Groups of near-duplicates. Rows of different groups are independent."""
    answers: Answers
    metrics: Mapping[MetricName, MetricRow]
    """The first metric decides the verdict."""
    evidence: Evidence
    """The evidence from the rows that decide the verdict."""
    gained: int
    """Rows that only the tuned model answers word for word."""
    lost: int
    """Rows that only the base model answers word for word."""
    sources: Sequence[SourceRow]
    """One for each source of the rows that decide; empty if there is only one source."""
    apart: Sequence[SourceRow]
    """The rows that decide, and the other rows; empty if no row leaked."""
    labels: LabelTable | None
    """None if the answers are not labels."""
    fields: Sequence[FieldCount]
    """The fields of the tuned model's answers; empty if the answers are not JSON."""
    shots: Sequence[int]
    """Examples before each prompt, one number for each draw; empty without few-shot prompting."""

    @property
    def decision(self) -> MetricRow:
        """The deciding metric on the rows that decide."""
        return self.evidence.decision

    @property
    def baseline(self) -> str:
        """The best of Base, FewShot and QUANTIZED by the deciding metric."""
        return self.evidence.baseline

    @property
    def change(self) -> Change | None:
        """The change of the deciding metric from the best baseline to the tuned model."""
        return self.evidence.change

    @property
    def outcome(self) -> Outcome:
        """The result of tuning."""
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
    """Compares models that were measured on the same rows (at least one). The first of `metrics` decides.

    `sources`: the names of the sources, in the order of Example.mixture."""
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
    """Adds the labels that only held-out rows have. The model was not trained on them, so it answers them wrong."""
    if answers.kind is not AnswerKind.LABEL:
        return answers
    new = Counter(text.strip() for text in expected if text.strip() not in set(answers.labels))
    return replace(answers, labels=(*answers.labels, *(text for text, _ in new.most_common()))[:MOST_LABELS])


def by_source(
    models: Mapping[str, Scored], name: MetricName, rows: Sequence[Example], sources: Sequence[str], seed: int
) -> list[SourceRow]:
    """Returns the deciding metric for each source, on its rows that decide. Empty if only one source has such rows."""
    clean = deciding(rows)
    parts = [(source, [i for i in clean if rows[i].mixture == number]) for number, source in enumerate(sources)]
    return _parts(models, name, rows, parts, seed)


def by_leak(models: Mapping[str, Scored], name: MetricName, rows: Sequence[Example], seed: int) -> list[SourceRow]:
    """Returns the deciding metric on the rows that decide and on the other rows. Empty if there are no other rows."""
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
    """Returns the metric on each part that has rows. Empty if fewer than two parts have rows."""
    there = [(title, mine) for title, mine in parts if mine]
    found = []
    for title, mine in there if len(there) > 1 else []:
        own = {model: one.part(mine, [name]) for model, one in models.items() if name in one.statistics}
        paired = Paired(own, [rows[i].cluster for i in mine], seed)
        found.append(SourceRow(title, len(mine), metric_row(paired, name)))
    return found


def label_table(given: Sequence[str], expected: Sequence[str], answers: Answers) -> LabelTable | None:
    """Returns the scores for each label, or None if the answers are not labels."""
    if answers.kind is not AnswerKind.LABEL:
        return None
    wanted = [text.strip() for text in expected]
    totals = label_counts(given, wanted, answers.labels).sum(axis=0)
    return LabelTable(label_scores(totals, answers.labels), Counter(confusion(given, wanted, answers.labels)))
