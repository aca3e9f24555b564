"""One metric of all models, and the choice of the best baseline."""

from dataclasses import dataclass

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_trainer.metrics.values import LOWER_IS_BETTER
from finetune_trainer.statistics.estimates import Change, MetricEstimate, Paired

TUNED = "Tuned"
QUANTIZED = "Quantized"
"""Under QLoRA the base model in 4 bits, if Baseline.BASE is the base model in bf16. It has no answers, only a loss."""
BASELINES = (Baseline.BASE, Baseline.FEW_SHOT, QUANTIZED)


@dataclass(frozen=True)
class MetricRow:
    """One metric of all models. A value is None if it was not measured, or no row counts for it."""

    name: MetricName
    base: MetricEstimate | None
    few_shot: MetricEstimate | None
    tuned: MetricEstimate | None
    over_base: Change | None
    """Change from the base model to the tuned model."""
    over_few_shot: Change | None
    """Change from few-shot prompting to the tuned model."""
    quantized: MetricEstimate | None = None
    over_quantized: Change | None = None
    """Change from the base model in 4 bits to the tuned model."""

    def of(self, baseline: str) -> MetricEstimate | None:
        """Returns the value of a baseline."""
        found = {Baseline.BASE: self.base, Baseline.FEW_SHOT: self.few_shot, QUANTIZED: self.quantized}
        return found[baseline]

    def over(self, baseline: str) -> Change | None:
        """Returns the change from a baseline to the tuned model."""
        found = {Baseline.BASE: self.over_base, Baseline.FEW_SHOT: self.over_few_shot, QUANTIZED: self.over_quantized}
        return found[baseline]


def metric_row(paired: Paired, name: MetricName) -> MetricRow:
    """Returns one metric of all models."""
    base, few_shot, quantized, tuned = (paired.estimate(model, name) for model in (*BASELINES, TUNED))
    over_base, over_few_shot, over_quantized = (paired.change(model, TUNED, name) for model in BASELINES)
    return MetricRow(
        name=name,
        base=base,
        few_shot=few_shot,
        tuned=tuned,
        over_base=over_base,
        over_few_shot=over_few_shot,
        quantized=quantized,
        over_quantized=over_quantized,
    )


def best_baseline(decision: MetricRow) -> str:
    """Returns the best baseline, or the base model if none is better.

    A comparison with a worse baseline would exaggerate the gain: the base model without examples does not know which
    answers are wanted, and it can have a higher loss than its own 4-bit version."""
    sign = -1 if decision.name in LOWER_IS_BETTER else 1
    values = {name: sign * found.value for name in BASELINES if (found := decision.of(name))}
    return max(values, key=lambda name: values[name], default=Baseline.BASE)
