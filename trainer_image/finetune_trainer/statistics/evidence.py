"""What the verdict goes by: the deciding metric on the held-out rows that did not leak, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_trainer.handover.prepared import Example
from finetune_trainer.metrics.values import LIKELIHOODS
from finetune_trainer.statistics.chance import by_chance, pairings
from finetune_trainer.statistics.estimates import Change, MetricEstimate, Paired, Scored
from finetune_trainer.statistics.metric_rows import TUNED, MetricRow, best_baseline, metric_row

CHANCE = "Chance"
SLIGHT = 0.2
"""Agreement beyond chance, as a share of what there is room for, below which Landis and Koch (1977) call Cohen's kappa
slight."""
MOST = 0.5
"""Share of a score that answers to other rows have as well from which it is mostly the form that is right."""


class Outcome(StrEnum):
    """What tuning came to."""

    BETTER = "Better"
    PROMPTING = "Prompting"
    """No better than prompting the base model with examples, as far as these rows can tell."""
    LEAKED = "Leaked"
    """Better on test rows that leaked alone."""
    UNRELATED = "Unrelated"
    """The answers fit other rows as well as their own."""
    LIKELIER = "Likelier"
    """The right answers became likelier, but the answers given are no better."""
    WORSE = "Worse"
    """Worse than the base model."""
    NOISE = "Noise"
    """Nothing can be told."""


@dataclass(frozen=True)
class Evidence:
    """The rows that decide: those of groups of near copies in which no row leaked."""

    rows: int
    clusters: int
    """Groups of rows that are no near copies of each other: the independent pieces of evidence."""
    leaked: int
    """Held-out rows that are left out."""
    baseline: str
    """The best of base, few-shot and QUANTIZED by the deciding metric."""
    decision: MetricRow
    """The deciding metric."""
    loss: MetricRow
    by_chance: MetricEstimate | None = None
    """The deciding metric of the tuned model's answers, held against the expected answers of other rows; None where the
    verdict goes by the loss, or no row has another to be held against."""
    chance: Change | None = None
    """From by_chance to tuned."""
    labels: int = 0
    """Labels that the answers are of; 0 where they are none."""
    gap: Change | None = None
    """By how much the rows that leaked gained more. None where there are none, or no others."""
    detectable: float | None = None
    """The least gain that so many groups would have shown; None where they could show none."""

    @property
    def change(self) -> Change | None:
        """The deciding metric from the better baseline to the tuned model."""
        return self.decision.over(self.baseline)

    @property
    def outcome(self) -> Outcome:
        """What the tests say together. The deciding metric comes first; where it cannot tell the models apart, a lower
        loss is worth a word."""
        if self.is_unrelated:
            return Outcome.UNRELATED
        sign = self.change.sign if self.change else 0
        if sign > 0:
            return Outcome.BETTER if self.is_beyond_chance else Outcome.NOISE
        if self.gap is not None and self.gap.sign > 0:
            return Outcome.LEAKED
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
        return min((change.sign for change in (self.loss.over_base, self.loss.over_quantized) if change), default=0)

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the tuned model's answers fit their own rows better than others, or that was not looked at."""
        return self.chance is None or self.chance.sign > 0

    @property
    def is_unrelated(self) -> bool:
        """Whether the tuned model's answers surely fit their own rows hardly better than others. That a test finds no
        difference is not enough, few rows never show one: the upper end of the advantage's interval has to be small.

        Of labels a guess is right at times, so an answer's score says little; of other answers most of the score has to
        be had on other rows as well."""
        if self.chance is None or self.by_chance is None or self.decision.tuned is None or self.is_beyond_chance:
            return False
        most = self.chance.interval.high
        if most >= SLIGHT * (1 - self.by_chance.value):
            return False
        if self.labels:
            return self.by_chance.value >= MOST / self.labels  # or else the answers are hardly labels
        return most < MOST * self.decision.tuned.value


def deciding(rows: Sequence[Example]) -> list[int]:
    """Indices of the rows of groups in which no row leaked."""
    leaked = {row.cluster for row in rows if row.leaked}
    return [index for index, row in enumerate(rows) if row.cluster not in leaked]


def evidence_of(
    models: Mapping[str, Scored],
    name: MetricName,
    rows: Sequence[Example],
    given: Sequence[str],
    labels: Sequence[str],
    seed: int,
) -> Evidence:
    """What the rows that did not leak say by the metric `name`. `given`: the tuned model's answers, where it gave any;
    `labels`: those that the answers are of, where they are labels."""
    clean = deciding(rows)
    if not clean:
        nothing = MetricRow(name, None, None, None, None, None)
        return Evidence(0, 0, len(rows), Baseline.BASE, nothing, nothing)
    kept, clusters = [rows[i] for i in clean], [rows[i].cluster for i in clean]
    own = {model: found.part(clean, (name, MetricName.LOSS)) for model, found in models.items()}
    if name not in LIKELIHOODS and (other := pairings(kept, seed)):
        expected = [row.final_answer for row in kept]
        own[CHANCE] = by_chance(name, [given[i] for i in clean], expected, other, labels)
    paired = Paired(own, clusters, seed)
    decision = metric_row(paired, name)
    baseline = best_baseline(decision)
    measured = decision.over(baseline) is not None
    return Evidence(
        rows=len(clean),
        clusters=len(set(clusters)),
        leaked=len(rows) - len(clean),
        baseline=baseline,
        decision=decision,
        loss=metric_row(paired, MetricName.LOSS),
        by_chance=paired.estimate(CHANCE, name),
        chance=paired.change(CHANCE, TUNED, name),
        labels=len(labels),
        gap=_gap(models, name, rows, baseline, seed) if measured and len(clean) < len(rows) else None,
        detectable=paired.detectable(baseline, TUNED, name) if measured else None,
    )


def _gap(
    models: Mapping[str, Scored], name: MetricName, rows: Sequence[Example], baseline: str, seed: int
) -> Change | None:
    """By how much the rows that do not decide gained more than the others."""
    leaked = np.ones(len(rows), dtype=np.bool_)
    leaked[deciding(rows)] = False
    compared = {model: models[model].part(range(len(rows)), [name]) for model in (baseline, TUNED)}
    return Paired(compared, [row.cluster for row in rows], seed).gap(baseline, TUNED, name, leaked)
