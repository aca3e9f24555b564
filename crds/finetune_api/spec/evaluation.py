"""The fields of a FineTuneJob about the evaluation: metrics, baselines and gates."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, DnsLabel, SchemaKeys, dns_label, list_map, rules
from finetune_api.spec.dataset import RowFiles


class MetricName(StrEnum):
    """A number that summarises the quality of a model on held-out rows."""

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
"""Metrics of the likelihood of the expected answers. The model writes no answers for them. They are always measured."""
LABEL_METRICS = (MetricName.MACRO_PRECISION, MetricName.MACRO_RECALL, MetricName.MACRO_F1)
"""Metrics that need the set of labels."""


def _is_one_of(field: str, names: tuple[MetricName, ...]) -> str:
    """Return a CEL expression: whether `field` is one of `names`."""
    return f"{field} in [{', '.join(repr(name.value) for name in names)}]"


class Baseline(StrEnum):
    """A model that the tuned model is compared with."""

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
        rules(("self.exists(b, b == 'Base')", "must contain Base, which is always measured: add Base"))
        | {"x-kubernetes-list-type": "set"}
    ),
]


class Generation(ApiModel):
    """How answers are generated in the evaluation: with greedy decoding, and from the same prompts for every model."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Largest length of an answer in tokens. Longer answers are cut and counted as truncated. Default: 1.5 times the
    99th percentile of the lengths of the training answers."""


class MinGain(ApiModel):
    """By how much the tuned model must be better, in the unit of the metric. Lower is better for Loss and Perplexity,
    so the gain is the decrease."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.base) || has(self.fewShot)", "minGainOver needs a baseline: set base, fewShot or both")
        )
    )

    base: Amount | None = None
    """Smallest gain over the base model in bfloat16. Under QLoRA, if the base model in bfloat16 does not fit the
    device, the base model in 4 bits is used."""
    few_shot: Amount | None = None
    """Smallest gain over the base model with few-shot prompting."""


class Gate(ApiModel):
    """A condition that the tuned model must meet for the job to become Complete. The measured value is compared, not an
    end of its confidence interval."""

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
                "Loss and Perplexity are not measured for few-shot prompting: set minGainOver.base, or choose another "
                "metric",
            ),
        )
    )

    metric: MetricName
    """The metric that is checked. Values are between 0 and 1, except for Loss (nats per token) and Perplexity."""
    min: Amount | None = None
    """Smallest value that passes."""
    max: Amount | None = None
    """Largest value that passes."""
    min_gain_over: MinGain | None = None
    """Smallest gain over the baselines. Each baseline used here must be in evaluation.baselines. For Loss and
    Perplexity, the gain is the decrease."""


Gates = Annotated[list[Gate], Field(min_length=1, max_length=16), SchemaKeys({"x-kubernetes-list-type": "atomic"})]


class RegressionSet(RowFiles):
    """Rows for an ability of the base model that tuning must preserve, such as answering general questions."""

    name: Annotated[DnsLabel, dns_label("lower-case letters, digits and hyphens")]
    """Name of the regression set in the status and in the report."""
    metric: Annotated[
        MetricName,
        SchemaKeys(
            rules(
                (
                    f"!({_is_one_of('self', LABEL_METRICS)})",
                    "must be a metric that needs no set of labels, for example ExactMatch",
                )
            )
        ),
    ]
    """The metric that is compared. Values are between 0 and 1, except for Loss (nats per token) and Perplexity."""
    max_drop: Annotated[float, Field(ge=0, le=1_000_000)]
    """By how much the tuned model may be worse than the base model, in the unit of the metric."""


class Evaluation(ApiModel):
    """How the tuned model is compared with the baselines on the test rows, and which values it must reach. A job that
    misses a gate or a regression set ends as Failed with reason EvaluationGateFailed. Its results are still
    published for inspection: the manifest has passed: false, and the report and the model card begin with this fact."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.gates) || self.baselines.exists(b, b == 'FewShot') || "
                "!self.gates.exists(g, has(g.minGainOver) && has(g.minGainOver.fewShot))",
                "minGainOver.fewShot needs FewShot in baselines: add FewShot",
            ),
        )
    )

    metrics: Metrics | None = None
    """Metrics to measure in addition to Loss and Perplexity. The first metric decides the verdict. If no metric needs
    answers, no answers are generated. Default: chosen from the training answers. JSON (at least 90% of the answers
    are an object or array): FieldMatch, ValidJSON, ExactMatch, TokenF1, ROUGE and BLEU. Labels (2 to 200 different
    answers of one line and at most 64 characters, on average at least 10 rows per answer): ExactMatch, MacroF1,
    MacroPrecision, MacroRecall. Other answers: TokenF1, ExactMatch, ROUGE1, ROUGE2, ROUGEL, BLEU. Rows of format
    Text: Loss."""
    baselines: Baselines = Field(default=[Baseline.BASE, Baseline.FEW_SHOT])
    """Models to compare the tuned model with. The verdict compares with the best of them. Base: the base model in
    bfloat16 with the same prompts; under QLoRA, if this does not fit the device, the base model in 4 bits. FewShot:
    the base model with five examples from train before each prompt, in three fixed random draws. Fewer examples are
    used if the context of the model is too short for five."""
    max_rows: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Largest number of test rows on which every model is measured. The rows are drawn with the seed of the split. The
    same limit applies to each regression set."""
    generation: Generation = Generation()
    """How answers are generated."""
    gates: Gates | None = None
    """Conditions that the tuned model must meet on the test rows. Measured values are compared, not confidence
    intervals. A job that misses a gate ends as Failed with reason EvaluationGateFailed. Its results are still
    published, marked as not passed."""
    regression: Annotated[list[RegressionSet], Field(min_length=1, max_length=8), list_map("name")] | None = None
    """Sets of other rows on which the tuned model must not be much worse than the base model. A job that misses a
    regression set ends like a job that misses a gate."""
