"""The evaluation in the status of a FineTuneJob, which the attempt writes."""

from typing import Annotated

from pydantic import Field

from finetune_api.model import SchemaKeys, StatusModel
from finetune_api.spec.evaluation import MetricName
from finetune_api.status.fields import ATOMIC, Message, Reason, Text, Time


class Metrics(StatusModel):
    """Metrics of one model on the test rows. Metrics that were not measured are absent. All values except loss and
    perplexity are between 0 and 1."""

    loss: float | None = None
    """Mean cross-entropy of the tokens of the expected answers, in nats."""
    perplexity: float | None = None
    """exp(loss)."""
    exact_match: float | None = None
    """Share of rows whose answer equals the expected answer, after trimming white space."""
    token_f1: float | None = None
    """Mean F1 between the words of the answer and of the expected answer, with SQuAD normalisation."""
    rouge1: float | None = None
    """Mean ROUGE-1 F1, without stemming."""
    rouge2: float | None = None
    """Mean ROUGE-2 F1, without stemming."""
    rouge_l: float | None = None
    """Mean ROUGE-L F1, without stemming."""
    bleu: float | None = None
    """Corpus BLEU as in sacrebleu: 13a tokenization and exponential smoothing."""
    valid_json: Annotated[float | None, Field(alias="validJSON")] = None
    """Share of valid JSON among the rows whose expected answer is JSON. Valid means that the answer is a JSON object or
    array."""
    field_match: float | None = None
    """Share of JSON fields with the expected value, among all fields that are expected or given, including nested
    fields."""
    macro_precision: float | None = None
    """Precision, as the mean over the labels."""
    macro_recall: float | None = None
    """Recall, as the mean over the labels."""
    macro_f1: float | None = None
    """F1, as the mean over the labels."""
    truncated: int | None = None
    """Number of answers that were cut at resolved.maxNewTokens; for few-shot prompting, the mean over the draws."""


class Decision(StatusModel):
    """The metric that decides the verdict."""

    metric: MetricName
    """Name of the metric."""
    rows: int | None = None
    """Number of test rows for the deciding metric. Test rows that also occur in the training data, and their
    near-duplicates, are excluded."""
    over: Reason
    """The best baseline, with which the tuned model is compared: Base, FewShot, or Quantized, which is the base model
    in 4 bits if it has the lower loss."""
    baseline: float | None = None
    """Value of the metric for that baseline."""
    tuned: float | None = None
    """Value of the metric for the tuned model."""
    gain: float | None = None
    """Improvement from the baseline to the tuned model. A value above zero is better, for every metric."""
    low: float | None = None
    """Lower end of the 95% confidence interval of the gain, from a paired bootstrap over groups of near-duplicates."""
    high: float | None = None
    """Upper end of the 95% confidence interval of the gain."""
    outcome: Reason
    """Result of the comparison. Better: the tuned model is better. Prompting: the rows show no gain over few-shot
    prompting. Leaked: only test rows that also occur in the training data gained. Unrelated: the answers fit other
    rows as well as their own rows. Likelier: only the loss decreased. Worse: the tuned model is worse. Noise: the
    difference is not statistically significant."""


class GateResult(StatusModel):
    """Result of one bound of a gate."""

    metric: MetricName
    """The metric that was checked."""
    bound: Reason
    """Min, Max, MinGainOverBase or MinGainOverFewShot."""
    limit: float
    """The required value."""
    value: float | None = None
    """The measured value; absent if it could not be measured."""
    passed: bool
    """Whether the value is within the bound."""


class RegressionResult(StatusModel):
    """Result of one regression set."""

    name: Text
    """Name of the regression set."""
    metric: MetricName
    """The metric that was compared."""
    rows: int
    """Number of rows that were measured."""
    base: float | None = None
    """Value of the metric for the base model."""
    tuned: float | None = None
    """Value of the metric for the tuned model."""
    drop: float | None = None
    """By how much the tuned model is worse than the base model. Below zero means better."""
    max_drop: float
    """The largest allowed drop."""
    passed: bool
    """Whether the drop is at most maxDrop."""


class SourceResult(StatusModel):
    """The deciding metric on the test rows of one source."""

    name: Text
    """Name of the source, or the list and the position in it, for example train-1."""
    rows: int
    """Number of rows that were measured."""
    base: float | None = None
    """Value of the metric for the base model."""
    few_shot: float | None = None
    """Value of the metric for the base model with few-shot prompting."""
    tuned: float | None = None
    """Value of the metric for the tuned model."""
    low: float | None = None
    """Lower end of the 95% confidence interval of the gain over the base model."""
    high: float | None = None
    """Upper end of the 95% confidence interval of the gain."""


class Merged(StatusModel):
    """The merged model on the test rows, measured with the published files."""

    loss: float
    """Mean cross-entropy of the tokens of the expected answers on the evaluated test rows, in nats."""
    loss_change: float
    """This loss minus the loss of the base model with the separate adapter."""
    rows: int
    """Number of test rows that the merged model answered; 0 if no metric needs answers."""
    exact_match: float | None = None
    """Share of these rows whose answer equals the expected answer, between 0 and 1."""
    exact_match_change: float | None = None
    """This share minus the share of the tuned model on these rows."""
    changed: bool
    """Whether one of the two changes exceeds its tolerance: 0.01 nats or 5 percentage points."""
    message: Message
    """What merging changed, in one sentence."""


class Quantized(StatusModel):
    """The effect of quantization alone, under QLoRA: the base model in 4 bits on the test rows, before any training."""

    loss: float
    """Mean cross-entropy of the tokens of the expected answers, in nats."""
    loss_change: float | None = None
    """This loss minus the loss of the base model in bfloat16; absent if the base model in bfloat16 does not fit the
    device."""
    message: Message
    """What quantization changed, or why this is not known."""


class Evaluation(StatusModel):
    """Comparison of the models on the test rows."""

    rows: int
    """Number of test rows on which all models were measured."""
    base: Metrics | None = None
    """The base model in bfloat16 with the same prompts. Under QLoRA, if bfloat16 does not fit the device, the base
    model in 4 bits; quantized then has no lossChange."""
    few_shot: Metrics | None = None
    """The base model with examples before each prompt (few-shot prompting), as the mean of three draws."""
    tuned: Metrics | None = None
    """The base model with the adapter. Under QLoRA the base weights are in 4 bits, as in training."""
    quantized: Quantized | None = None
    """The effect of quantization alone, under QLoRA."""
    merged: Merged | None = None
    """The merged model, if output.merge is true."""
    decision: Decision | None = None
    """The metric that decides the verdict."""
    sources: Annotated[list[SourceResult], Field(max_length=32), SchemaKeys(ATOMIC)] | None = None
    """Results per source, if the test rows come from several sources."""
    gates: Annotated[list[GateResult], Field(max_length=64), SchemaKeys(ATOMIC)] | None = None
    """Results of the gates."""
    regression: Annotated[list[RegressionResult], Field(max_length=8), SchemaKeys(ATOMIC)] | None = None
    """Results of the regression sets."""
    passed: bool | None = None
    """Whether the tuned model passed all gates and regression sets; absent if there are none."""
    verdict: Message | None = None
    """Whether tuning was worth it, in one or a few sentences."""
    observed_time: Time
    """When this part of the status was written."""
