"""What a tenant writes about the evaluation: what is measured, against what, and what it takes to pass."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, DnsLabel, SchemaKeys, dns_label, list_map, rules
from finetune_api.spec.dataset import RowFiles


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


LIKELIHOODS = (MetricName.LOSS, MetricName.PERPLEXITY)
"""Metrics of the right answers' likelihood, which need no answer of the model's own. They are always taken."""
LABEL_METRICS = (MetricName.MACRO_PRECISION, MetricName.MACRO_RECALL, MetricName.MACRO_F1)
"""Metrics that need the set of labels."""


def _is_one_of(field: str, names: tuple[MetricName, ...]) -> str:
    """In CEL, whether `field` is one of `names`."""
    return f"{field} in [{', '.join(repr(name.value) for name in names)}]"


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
    """Least gain over the base model: in bfloat16; under QLoRA, where that does not fit the device, in 4 bits."""
    few_shot: Amount | None = None
    """Least gain over the same model prompted with examples."""


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
            (
                f"!({_is_one_of('self.metric', LIKELIHOODS)}) || !has(self.minGainOver) || "
                "!has(self.minGainOver.fewShot)",
                "Loss and Perplexity are not taken of prompting: the gain must be over base, or of another metric",
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
    """Least gain over the baselines, which must be among evaluation.baselines. For Loss and Perplexity a gain is by how
    much they fell."""


Gates = Annotated[list[Gate], Field(min_length=1, max_length=16), SchemaKeys({"x-kubernetes-list-type": "atomic"})]


class RegressionSet(RowFiles):
    """Rows of something the model could do before and has to be able to do still, such as general questions."""

    name: Annotated[DnsLabel, dns_label("lower-case letters, digits and hyphens")]
    """What the set is called in the status and the report."""
    metric: Annotated[
        MetricName,
        SchemaKeys(
            rules(
                (
                    f"!({_is_one_of('self', LABEL_METRICS)})",
                    "must be one that needs no set of labels: ExactMatch, for example",
                )
            )
        ),
    ]
    """What is compared. All metrics are shares from 0 to 1, but Loss (nats per token) and Perplexity."""
    max_drop: Annotated[float, Field(ge=0, le=1_000_000)]
    """By how much the tuned model may be worse than the base model, in the metric's own unit."""


class Evaluation(ApiModel):
    """How the tuned model is compared on the held-out rows, and what it has to reach. A job that fails a gate or a
    regression set ends as Failed with reason EvaluationGateFailed. Its results are published all the same, to be looked
    at: the manifest's field passed is false, and the report and the model card say so first."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.gates) || self.baselines.exists(b, b == 'FewShot') || "
                "!self.gates.exists(g, has(g.minGainOver) && has(g.minGainOver.fewShot))",
                "a gate on the gain over fewShot needs FewShot in baselines: add it",
            ),
        )
    )

    metrics: Metrics | None = None
    """What is measured beside Loss and Perplexity; the first one decides the verdict. Without a metric of answers no
    answers are written. Default: what fits the training answers. JSON (nine of ten are an object or array): FieldMatch,
    ValidJSON, ExactMatch and the overlaps. Labels (2 to 200 different answers of at most 64 characters, ten rows to
    each on average): ExactMatch, MacroF1, MacroPrecision, MacroRecall. Other text: TokenF1, ExactMatch, ROUGE1, ROUGE2,
    ROUGEL, BLEU. Text to continue: Loss."""
    baselines: Baselines = Field(default=[Baseline.BASE, Baseline.FEW_SHOT])
    """What the tuned model is compared with; the verdict goes against the better one. Base: the base model, given the
    same prompts, in bfloat16; under QLoRA, where that does not fit the device, in 4 bits. FewShot: the same model with
    five examples from train before each prompt, in three fixed draws; fewer examples where the model's context is too
    short for five."""
    max_rows: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Held-out rows that every model is measured on, drawn with the split's seed; of each regression set as many."""
    generation: Generation = Generation()
    """How answers are written."""
    gates: Gates | None = None
    """What the tuned model has to reach on the held-out rows; values count as measured. A job that falls short ends as
    Failed (EvaluationGateFailed); its results are published all the same, marked as not passed."""
    regression: Annotated[list[RegressionSet], Field(min_length=1, max_length=8), list_map("name")] | None = None
    """Sets of other rows on which the tuned model must not be much worse than the base model. A job that falls short of
    one ends as one that fails a gate."""
