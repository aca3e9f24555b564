"""One metric of all models side by side."""

from dataclasses import dataclass

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_trainer.metrics.values import LOWER_IS_BETTER
from finetune_trainer.statistics.estimates import Change, MetricEstimate, Paired

TUNED = "Tuned"
QUANTIZED = "Quantized"
"""Under QLoRA the base model in 4 bits, where Baseline.BASE is that in bf16. It writes no answers."""
BASELINES = (Baseline.BASE, Baseline.FEW_SHOT, QUANTIZED)


@dataclass(frozen=True)
class MetricRow:
    """One metric of all models. What was not measured, or cannot be on these rows, is None."""

    name: MetricName
    base: MetricEstimate | None
    few_shot: MetricEstimate | None
    tuned: MetricEstimate | None
    over_base: Change | None
    """From base to tuned."""
    over_few_shot: Change | None
    """From few-shot to tuned."""
    quantized: MetricEstimate | None = None
    over_quantized: Change | None = None
    """From the base model in 4 bits to tuned."""

    def of(self, baseline: str) -> MetricEstimate | None:
        """The value of a baseline."""
        found = {Baseline.BASE: self.base, Baseline.FEW_SHOT: self.few_shot, QUANTIZED: self.quantized}
        return found[baseline]

    def over(self, baseline: str) -> Change | None:
        """From that baseline to tuned."""
        found = {Baseline.BASE: self.over_base, Baseline.FEW_SHOT: self.over_few_shot, QUANTIZED: self.over_quantized}
        return found[baseline]


def metric_row(paired: Paired, name: MetricName) -> MetricRow:
    """One metric of all models."""
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
    """What is best before tuning: a base that was never told what is wanted is a straw man, and so is one that lost to
    its own quantization. The base model itself where none is better."""
    sign = -1 if decision.name in LOWER_IS_BETTER else 1
    values = {name: sign * found.value for name in BASELINES if (found := decision.of(name))}
    return max(values, key=lambda name: values[name], default=Baseline.BASE)
