"""What a tenant writes about the evaluation: what is measured, against what, and what it takes to pass."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, SchemaKeys, rules


class MetricName(StrEnum):
    """A number that sums up a model's work on held-out rows."""

    LOSS = "Loss"
    PERPLEXITY = "Perplexity"
    EXACT_MATCH = "ExactMatch"
    TOKEN_F1 = "TokenF1"
    ROUGE1 = "ROUGE1"
    ROUGE2 = "ROUGE2"
    ROUGE_L = "ROUGEL"
    BLEU = "BLEU"
    VALID_JSON = "ValidJSON"
    FIELD_MATCH = "FieldMatch"
    MACRO_PRECISION = "MacroPrecision"
    MACRO_RECALL = "MacroRecall"
    MACRO_F1 = "MacroF1"


class Baseline(StrEnum):
    """What the tuned model is compared with."""

    BASE = "Base"
    FEW_SHOT = "FewShot"


Amount = Annotated[float, Field(ge=-1_000_000, le=1_000_000)]
Metrics = Annotated[
    list[MetricName], Field(min_length=1, max_length=len(MetricName)), SchemaKeys({"x-kubernetes-list-type": "set"})
]
Baselines = Annotated[
    list[Baseline],
    Field(min_length=1, max_length=len(Baseline)),
    SchemaKeys(
        rules(("self.exists(b, b == 'Base')", "must hold Base, which is always measured: add it"))
        | {"x-kubernetes-list-type": "set"}
    ),
]


class Generation(ApiModel):
    """How answers are written in the evaluation: greedily, from the same prompts for every model."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Longest answer in tokens; what is longer is cut and counted as truncated. Default: half as long again as nearly
    all training answers (their 99th percentile times 1.5)."""


class MinGain(ApiModel):
    """By how much the tuned model has to be better, in the metric's own unit. For Loss and Perplexity lower is better,
    so a gain is by how much they fell."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.base) || has(self.fewShot)", "minGainOver needs a baseline: set base, fewShot or both")
        )
    )

    base: Amount | None = None
    """Least gain over the base model."""
    few_shot: Amount | None = None
    """Least gain over the base model prompted with examples."""


class Gate(ApiModel):
    """What the tuned model has to reach for the job to be Complete. Values count as measured, not the ends of their
    intervals."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.min) || has(self.max) || has(self.minGainOver)",
                "a gate needs a bound: set min, max or minGainOver",
            ),
            (
                "!has(self.min) || !has(self.max) || self.min <= self.max",
                "min must not be above max: lower min or raise max",
            ),
        )
    )

    metric: MetricName
    """What is looked at. All metrics are shares from 0 to 1, but Loss (nats per token) and Perplexity."""
    min: Amount | None = None
    """Least value that passes."""
    max: Amount | None = None
    """Largest value that passes."""
    min_gain_over: MinGain | None = None
    """Least gain over the baselines, which must be among evaluation.baselines."""


Gates = Annotated[list[Gate], Field(min_length=1, max_length=16), SchemaKeys({"x-kubernetes-list-type": "atomic"})]
