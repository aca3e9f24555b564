"""Base, prompted and tuned model side by side on the same held-out rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from finetune_api.evaluation import Baseline, MetricName
from finetune_trainer.answer_kind import AnswerKind, Answers
from finetune_trainer.estimates import Change, Estimate, Paired, Scored, scored
from finetune_trainer.json_fields import FieldCount, field_counts
from finetune_trainer.labels import LabelScore, confusion, label_counts, label_scores
from finetune_trainer.measured import Answer, FewShot, Measured, texts
from finetune_trainer.metrics import LIKELIHOODS, LOWER_IS_BETTER, row_statistics
from finetune_trainer.mixing import shuffled
from finetune_trainer.prepared import Example

MOST_LABELS = 500
"""Labels told apart: those learned, then the most frequent of those only expected. Memory is rows times labels."""
LEAKED_SHARE = 0.05
"""Share of learned test rows beyond which a lower loss proves nothing."""
OTHER_ROWS = 10
"""Other rows whose expected answer each answer is held against, to see what it scores by chance."""
TUNED, CHANCE = "Tuned", "Chance"
QUANTIZED = "Quantized"
"""Under QLoRA the base model in 4 bits, where Baseline.BASE is that in bf16. It writes no answers."""
BASELINES = (Baseline.BASE, Baseline.FEW_SHOT, QUANTIZED)


class Outcome(StrEnum):
    """What tuning came to."""

    BETTER = "Better"
    PROMPTING = "Prompting"
    """No better than prompting the base model with examples, as far as these rows can tell."""
    LEAKED = "Leaked"
    """Better, but by no more than the test rows that were learned could make."""
    UNRELATED = "Unrelated"
    """Better, but the answers fit other rows as well as their own."""
    LIKELIER = "Likelier"
    """The right answers became likelier, but the answers given are no better."""
    WORSE = "Worse"
    """Worse than the base model."""
    NOISE = "Noise"


@dataclass(frozen=True)
class MetricRow:
    """One metric of all models. What was not measured, or cannot be on these rows, is None."""

    name: MetricName
    base: Estimate | None
    few_shot: Estimate | None
    tuned: Estimate | None
    over_base: Change | None
    """From base to tuned."""
    over_few_shot: Change | None
    """From few-shot to tuned."""
    quantized: Estimate | None = None
    over_quantized: Change | None = None
    """From the base model in 4 bits to tuned."""

    def of(self, baseline: str) -> Estimate | None:
        """The value of a baseline."""
        found = {Baseline.BASE: self.base, Baseline.FEW_SHOT: self.few_shot, QUANTIZED: self.quantized}
        return found[baseline]

    def over(self, baseline: str) -> Change | None:
        """From that baseline to tuned."""
        found = {Baseline.BASE: self.over_base, Baseline.FEW_SHOT: self.over_few_shot, QUANTIZED: self.over_quantized}
        return found[baseline]


@dataclass(frozen=True)
class SourceRow:
    """The deciding metric on the rows of one source."""

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
    baseline: str
    """The best of base, few-shot and QUANTIZED by the deciding metric."""
    gained: int
    """Rows only the tuned model answers word for word."""
    lost: int
    """Rows only the base model does."""
    chance: Change | None
    """The deciding metric of the tuned model's answers, against that of the same answers to other rows; None where the
    verdict goes by the loss, or there is one row."""
    sources: Sequence[SourceRow]
    """Where the rows come from several sources."""
    labels: LabelTable | None
    """Where the answers are labels."""
    fields: Sequence[FieldCount]
    """Where the answers are JSON: the fields of the tuned model's."""
    shots: Sequence[int]
    """Examples before each prompt, draw by draw; none where few-shot was not measured."""
    leaked: float = 0.0
    """Share of the test rows that stand in rows that were learned."""

    @property
    def decision(self) -> MetricRow:
        """The deciding metric."""
        return next(iter(self.metrics.values()))

    @property
    def change(self) -> Change | None:
        """The deciding metric from the better baseline to the tuned model."""
        return self.decision.over(self.baseline)

    @property
    def outcome(self) -> Outcome:
        """What the tests say together. The deciding metric comes first; where it cannot tell the models apart, a lower
        loss is worth a word."""
        sign = self.change.sign if self.change else 0
        if sign > 0 and not self.beyond_chance:
            return Outcome.UNRELATED
        if sign > 0:
            return Outcome.LEAKED if self.may_be_learned_by_heart else Outcome.BETTER
        if self.baseline != Baseline.FEW_SHOT and sign < 0:
            return Outcome.WORSE
        if self.baseline == Baseline.FEW_SHOT:
            over_base = self.decision.over_base.sign if self.decision.over_base else 0
            if over_base < 0:
                return Outcome.WORSE
            if over_base > 0 or sign < 0:
                return Outcome.PROMPTING
        return Outcome.LIKELIER if self.likelier > 0 else Outcome.NOISE

    @property
    def likelier(self) -> int:
        """1 or -1 where the right answers became likelier or less likely, beyond the noise."""
        loss = self.metrics[MetricName.LOSS]
        return min((change.sign for change in (loss.over_base, loss.over_quantized) if change), default=0)

    @property
    def may_be_learned_by_heart(self) -> bool:
        """Whether the test rows that were learned could make the whole gain."""
        if self.change is None or not self.leaked:
            return False
        least = LEAKED_SHARE if self.decision.name in LIKELIHOODS else self.change.interval.low
        return self.leaked >= least

    @property
    def beyond_chance(self) -> bool:
        """Whether the tuned model's answers fit their own rows better than others."""
        return self.chance is None or self.chance.sign > 0


def compare(
    rows: Sequence[Example],
    base: Measured,
    few_shot: FewShot | None,
    tuned: Measured,
    metrics: Sequence[MetricName],
    answers: Answers,
    seed: int,
    sources: Sequence[str] = (),
    quantized: Measured | None = None,
    leaked: float = 0.0,
) -> Comparison:
    """Compares models measured on the same rows, at least one, by `metrics`, of which the first decides. `sources`: the
    names of what Example.mixture counts. `quantized`: under QLoRA the base model in 4 bits, where `base` is not.
    `leaked`: share of the test rows that stand in rows that were learned."""
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
    if metrics[0] not in LIKELIHOODS and (other := pairings(rows, seed)):
        models[CHANCE] = by_chance(metrics[0], texts(tuned.answers), expected, other, answers)
    paired = Paired(models, [row.cluster for row in rows], seed)
    table = {name: metric_row(paired, name) for name in metrics}
    pairs = list(zip(base.answers, tuned.answers, strict=True))
    return Comparison(
        rows=len(rows),
        clusters=len({row.cluster for row in rows}),
        answers=answers,
        metrics=table,
        baseline=best_baseline(table[metrics[0]]),
        gained=sum(after.matches and not before.matches for before, after in pairs),
        lost=sum(before.matches and not after.matches for before, after in pairs),
        chance=paired.change(CHANCE, TUNED, metrics[0]),
        sources=by_source(models, metrics[0], rows, sources, seed),
        labels=label_table(texts(tuned.answers), expected, answers) if tuned.answers else None,
        fields=field_counts(zip(texts(tuned.answers), expected, strict=True))
        if answers.kind is AnswerKind.JSON and tuned.answers
        else [],
        shots=few_shot.shots if few_shot else (),
        leaked=leaked,
    )


def with_expected(answers: Answers, expected: Sequence[str]) -> Answers:
    """Labels together with those that only held-out rows have: a model that never learned one is wrong about it."""
    if answers.kind is not AnswerKind.LABEL:
        return answers
    new = Counter(text.strip() for text in expected if text.strip() not in set(answers.labels))
    return replace(answers, labels=(*answers.labels, *(text for text, _ in new.most_common()))[:MOST_LABELS])


def metric_row(paired: Paired, name: MetricName) -> MetricRow:
    """One metric of all models."""
    base, few_shot, quantized, tuned = (paired.estimate(model, name) for model in (*BASELINES, TUNED))
    over_base, over_few_shot, over_quantized = (paired.change(model, TUNED, name) for model in BASELINES)
    return MetricRow(name, base, few_shot, tuned, over_base, over_few_shot, quantized, over_quantized)


def best_baseline(decision: MetricRow) -> str:
    """What is best before tuning: a base that was never told what is wanted is a straw man, and so is one that lost to
    its own quantization. The base model itself where none is better."""
    sign = -1 if decision.name in LOWER_IS_BETTER else 1
    values = {name: sign * found.value for name in BASELINES if (found := decision.of(name))}
    return max(values, key=lambda name: values[name], default=Baseline.BASE)


def pairings(rows: Sequence[Example], seed: int) -> list[tuple[list[int], list[int]]]:
    """Up to ten times every row that asks something with one of the same source and another cluster, as (rows, others);
    rows that find none are left out."""
    orders: dict[int, list[int]] = {}
    for row in shuffled(len(rows), f"chance/{seed}"):
        if rows[row].prompt:
            orders.setdefault(rows[row].mixture, []).append(row)
    found = []
    for shift in range(1, OTHER_ROWS + 1):
        both = [
            pair
            for order in orders.values()
            if shift < len(order)
            for pair in zip(order, (*order[shift:], *order[:shift]), strict=True)
        ]
        apart = sorted((row, other) for row, other in both if rows[row].cluster != rows[other].cluster)
        if apart:
            found.append(([row for row, _ in apart], [other for _, other in apart]))
    return found


def by_chance(
    name: MetricName,
    given: Sequence[str],
    expected: Sequence[str],
    pairings: Sequence[tuple[list[int], list[int]]],
    answers: Answers,
) -> Scored:
    """What the answers score against the expected answers of other rows: what a model gets that has learned how
    answers look, and nothing about which belongs to which question."""
    total = None
    for mine, others in pairings:
        part = row_statistics(name, [given[row] for row in mine], [expected[row] for row in others], answers.labels)
        if total is None:
            total = np.zeros((len(given), part.shape[1]))
        total[mine] += part
    assert total is not None
    return Scored({name: total}, len(pairings))


def by_source(
    models: Mapping[str, Scored], name: MetricName, rows: Sequence[Example], sources: Sequence[str], seed: int
) -> list[SourceRow]:
    """The deciding metric on each source's rows, where there are several sources with rows."""
    members = {source: [i for i, row in enumerate(rows) if row.mixture == source] for source in range(len(sources))}
    found = []
    for source, mine in members.items():
        if mine and len(mine) < len(rows):
            part = {
                model: Scored({name: one.statistics[name][mine]}, one.draws)
                for model, one in models.items()
                if name in one.statistics
            }
            paired = Paired(part, [rows[i].cluster for i in mine], seed)
            found.append(SourceRow(sources[source], len(mine), metric_row(paired, name)))
    return found


def label_table(given: Sequence[str], expected: Sequence[str], answers: Answers) -> LabelTable | None:
    """Label by label, where the answers are labels."""
    if answers.kind is not AnswerKind.LABEL:
        return None
    wanted = [text.strip() for text in expected]
    totals = label_counts(given, wanted, answers.labels).sum(axis=0)
    return LabelTable(label_scores(totals, answers.labels), Counter(confusion(given, wanted, answers.labels)))
