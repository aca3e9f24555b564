"""Whether tuning was worth it, in one sentence, and how sure that is."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from math import comb

import numpy as np

from finetune_api.status import Evaluation, Merged
from finetune_trainer.evaluate import Measured, perplexity

SIGNIFICANCE = 0.05
RESAMPLES = 2000


class Outcome(StrEnum):
    """What tuning came to."""

    BETTER = "Better"
    LIKELIER = "Likelier"
    WORSE = "Worse"
    NOISE = "Noise"


CONCLUSIONS = {
    Outcome.BETTER: "tuning was worth it over the base model",
    Outcome.LIKELIER: "the right answers became likelier, but no more of them come out word for word",
    Outcome.WORSE: "tuning made the model worse, keep the base model",
}


@dataclass(frozen=True)
class Comparison:
    """Base and tuned model on the same rows."""

    gained: int
    """Rows only the tuned model answers word for word."""
    lost: int
    """Rows only the base model does."""
    p_value: float
    """McNemar's exact test on `gained` against `lost`, two-sided."""
    loss_change: tuple[float, float]
    """95% interval of tuned minus base loss in nats, by a paired bootstrap over rows."""
    outcome: Outcome
    evaluation: Evaluation
    """What the status says of it, with the verdict."""

    def with_merged(self, merged: Merged) -> "Comparison":
        """The same, with what merging changed."""
        return replace(self, evaluation=self.evaluation.model_copy(update={"merged": merged}))


def compare(base: Measured, tuned: Measured, seed: int) -> Comparison:
    """Compares two models measured on the same rows, at least one. What is inside the noise is called noise."""
    pairs = list(zip(base.answers, tuned.answers, strict=True))
    gained = sum(after.matches and not before.matches for before, after in pairs)
    lost = sum(before.matches and not after.matches for before, after in pairs)
    p_value, loss_change = mcnemar(gained, lost), loss_interval(base, tuned, seed)
    outcome = outcome_of(gained, lost, p_value, loss_change)
    finding = _matches(base, tuned) + ", " + _perplexities(base.loss, tuned.loss)
    evaluation = Evaluation(
        rows=len(pairs),
        base=base.metrics,
        tuned=tuned.metrics,
        verdict=f"{finding}: {_conclusion(outcome, p_value, loss_change)}.",
        observed_time=datetime.now(UTC),
    )
    return Comparison(gained, lost, p_value, loss_change, outcome, evaluation)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: how often a fair coin tossed `gained + lost` times is as one-sided
    (McNemar 1947)."""
    tosses = gained + lost
    tail = sum(comb(tosses, i) for i in range(min(gained, lost) + 1))
    return float(min(1, 2 * tail / 2**tosses))


def loss_interval(base: Measured, tuned: Measured, seed: int) -> tuple[float, float]:
    """95% interval of the change of the mean loss per label, in nats: percentiles of a paired bootstrap over rows
    (Efron and Tibshirani 1993)."""
    generator = np.random.default_rng(seed)
    change, labels = tuned.losses - base.losses, base.labels
    changes = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = generator.integers(len(change), size=len(change))
        changes[i] = change[drawn].sum() / labels[drawn].sum()
    low, high = np.quantile(changes, [0.025, 0.975])
    return float(low), float(high)


def outcome_of(gained: int, lost: int, p_value: float, loss_change: tuple[float, float]) -> Outcome:
    """What the two tests say together. Exact match decides; where it cannot tell the models apart, the loss does."""
    low, high = loss_change
    if p_value < SIGNIFICANCE:
        return Outcome.BETTER if gained > lost else Outcome.WORSE
    if high < 0:
        return Outcome.LIKELIER
    return Outcome.WORSE if low > 0 else Outcome.NOISE


def _conclusion(outcome: Outcome, p_value: float, loss_change: tuple[float, float]) -> str:
    if outcome is not Outcome.NOISE:
        return CONCLUSIONS[outcome]
    low, high = loss_change
    return (
        f"inside the noise (McNemar's exact test p = {p_value:.2f}; 95% interval of the loss's change by paired "
        f"bootstrap {low:+.2g} to {high:+.2g}), so nothing shows that tuning was worth it"
    )


def _matches(base: Measured, tuned: Measured) -> str:
    before, after = base.metrics.exact_match or 0.0, tuned.metrics.exact_match or 0.0
    rows = len(base.answers)
    on = f"Exact match on {rows:,} held-out row{'s' if rows > 1 else ''}"
    if before == after:
        return f"{on} stayed at {percent(after)}"
    return f"{on} {'rose' if after > before else 'fell'} from {percent(before)} to {percent(after)}"


def _perplexities(before: float, after: float) -> str:
    first, second = f"{perplexity(before):,.3g}", f"{perplexity(after):,.3g}"
    if first == second:
        return f"perplexity stayed at {second}"
    return f"perplexity {'rose' if after > before else 'fell'} from {first} to {second}"


def percent(share: float) -> str:
    """A share as percent, with a decimal where it has one; never 0% or 100% when it is not."""
    rounded = round(100 * share, 1)
    if share < 1:
        rounded = min(rounded, 99.9)
    if share > 0:
        rounded = max(rounded, 0.1)
    return f"{rounded:g}%"
