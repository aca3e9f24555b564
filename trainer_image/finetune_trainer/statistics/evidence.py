"""The evidence for the verdict: the deciding metric on the held-out rows that did not leak, and the outcome."""

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
"""Agreement beyond chance, as a share of the largest possible one. Below this value Landis and Koch (1977) call Cohen's
kappa slight."""
MOST = 0.5
"""If more than this share of a score is also reached on other rows, mostly the form of the answers is right."""


class Outcome(StrEnum):
    """The result of tuning."""

    BETTER = "Better"
    PROMPTING = "Prompting"
    """Not significantly better than prompting the base model with examples."""
    LEAKED = "Leaked"
    """Better only on test rows that leaked."""
    UNRELATED = "Unrelated"
    """The answers fit other rows as well as their own."""
    LIKELIER = "Likelier"
    """The right answers became more likely, but the model's answers are not better."""
    WORSE = "Worse"
    """Worse than the base model."""
    NOISE = "Noise"
    """No significant difference."""


@dataclass(frozen=True)
class Evidence:
    """The evidence from the rows that decide: rows of groups of near-duplicates in which no row leaked."""

    rows: int
    clusters: int
    """Groups of near-duplicates. Rows of different groups are independent."""
    leaked: int
    """Held-out rows that are not counted, because a row of their group leaked."""
    baseline: str
    """The best of Base, FewShot and QUANTIZED by the deciding metric."""
    decision: MetricRow
    """The deciding metric."""
    loss: MetricRow
    by_chance: MetricEstimate | None = None
    """The deciding metric of the tuned model's answers against the expected answers of other rows. None if the loss
    decides, or no row can be paired with another row."""
    chance: Change | None = None
    """The change from by_chance to the tuned model's score."""
    labels: int = 0
    """Number of different labels; 0 if the answers are not labels."""
    gap: Change | None = None
    """How much larger the gain is on the leaked rows. None if no row leaked, or all rows leaked."""
    detectable: float | None = None
    """The minimum detectable gain with this number of groups; None if there are too few groups to detect any gain."""

    @property
    def change(self) -> Change | None:
        """The change of the deciding metric from the best baseline to the tuned model."""
        return self.decision.over(self.baseline)

    @property
    def outcome(self) -> Outcome:
        """The outcome of all tests. The deciding metric comes first. If it shows no significant difference, the loss
        decides between Likelier and Noise."""
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
        """1 or -1 if the right answers became significantly more or less likely, otherwise 0."""
        return min((change.sign for change in (self.loss.over_base, self.loss.over_quantized) if change), default=0)

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the tuned model's answers fit their own rows significantly better than other rows. Also true if this
        was not tested."""
        return self.chance is None or self.chance.sign > 0

    @property
    def is_unrelated(self) -> bool:
        """Whether there is evidence that the tuned model's answers fit their own rows hardly better than other rows.

        A test that finds no difference is not enough, because few rows never show a difference. The upper end of the
        confidence interval of the advantage must be small. For answers that are not labels, most of the score must also
        be reached on other rows. For labels this says little, because a guessed label is sometimes right."""
        if self.chance is None or self.by_chance is None or self.decision.tuned is None or self.is_beyond_chance:
            return False
        most = self.chance.interval.high
        if most >= SLIGHT * (1 - self.by_chance.value):
            return False
        if self.labels:
            return self.by_chance.value >= MOST / self.labels  # otherwise most answers are not labels
        return most < MOST * self.decision.tuned.value


def deciding(rows: Sequence[Example]) -> list[int]:
    """Returns the indices of the rows whose group contains no leaked row."""
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
    """Returns the evidence from the rows that did not leak. `name`: the deciding metric. `given`: the tuned model's
    answers, empty if the metric needs none. `labels`: all labels, empty if the answers are not labels."""
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
    """Returns how much larger the gain is on the rows that do not decide than on the rows that decide."""
    leaked = np.ones(len(rows), dtype=np.bool_)
    leaked[deciding(rows)] = False
    compared = {model: models[model].part(range(len(rows)), [name]) for model in (baseline, TUNED)}
    return Paired(compared, [row.cluster for row in rows], seed).gap(baseline, TUNED, name, leaked)
