"""What an attempt writes of the status about the evaluation: what was measured, against what, and what follows."""

from typing import Annotated

from pydantic import Field

from finetune_api.model import SchemaKeys, StatusModel
from finetune_api.spec.evaluation import MetricName
from finetune_api.status.fields import ATOMIC, Message, Reason, Text, Time


class Metrics(StatusModel):
    """One model on the held-out rows. What was not measured is absent; all but loss and perplexity are 0 to 1."""

    loss: float | None = None
    """Mean cross-entropy of the answers' tokens, in nats."""
    perplexity: float | None = None
    """exp(loss)."""
    exact_match: float | None = None
    """Share of rows answered word for word, after trimming white space."""
    token_f1: float | None = None
    """Mean F1 of the words of answer and expected answer, in SQuAD's normalisation."""
    rouge1: float | None = None
    """Mean ROUGE-1 F1, not stemmed."""
    rouge2: float | None = None
    """Mean ROUGE-2 F1, not stemmed."""
    rouge_l: float | None = None
    """Mean ROUGE-L F1, not stemmed."""
    bleu: float | None = None
    """Corpus BLEU as sacrebleu takes it: 13a tokenization, exponential smoothing."""
    valid_json: Annotated[float | None, Field(alias="validJSON")] = None
    """Share of the rows that expect JSON whose answer is a JSON object or array."""
    field_match: float | None = None
    """Fields with the expected value, of all fields expected or given, nested ones included."""
    macro_precision: float | None = None
    """Precision, averaged over the labels."""
    macro_recall: float | None = None
    """Recall, averaged over the labels."""
    macro_f1: float | None = None
    """F1, averaged over the labels."""
    truncated: int | None = None
    """Answers that were cut at resolved.maxNewTokens; under few-shot, in the mean of the draws."""


class Decision(StatusModel):
    """The metric the verdict goes by."""

    metric: MetricName
    """Its name."""
    rows: int | None = None
    """Held-out rows it is taken of: those that did not leak, nor any near-duplicate of them."""
    over: Reason
    """The best of the baselines, which the tuned model is held against: Base, FewShot, or Quantized, the base model in
    4 bits where that has the lower loss."""
    baseline: float | None = None
    """Its value for that baseline."""
    tuned: float | None = None
    """Its value for the tuned model."""
    gain: float | None = None
    """From baseline to tuned; above zero is better, whatever the metric."""
    low: float | None = None
    """Lower end of the gain's 95% interval, by a paired bootstrap over groups of near copies."""
    high: float | None = None
    """Upper end of that interval."""
    outcome: Reason
    """Better; Prompting: no better than prompting with examples, as far as the rows can tell; Leaked: test rows that
    leaked gained more than the others, which gained nothing; Unrelated: the answers fit other rows as well as their
    own; Likelier: only the loss fell; Worse; Noise: nothing can be told."""


class GateResult(StatusModel):
    """One bound of a gate."""

    metric: MetricName
    """What was looked at."""
    bound: Reason
    """Min, Max, MinGainOverBase or MinGainOverFewShot."""
    limit: float
    """What was asked for."""
    value: float | None = None
    """What was measured; absent where it could not be."""
    passed: bool
    """Whether it is within the bound."""


class RegressionResult(StatusModel):
    """One regression set."""

    name: Text
    """The set."""
    metric: MetricName
    """What was compared."""
    rows: int
    """Rows it was measured on."""
    base: float | None = None
    """The base model's value."""
    tuned: float | None = None
    """The tuned model's value."""
    drop: float | None = None
    """By how much the tuned model is worse; below zero it is better."""
    max_drop: float
    """What was allowed."""
    passed: bool
    """Whether it is no worse than that."""


class SourceResult(StatusModel):
    """The deciding metric on the rows of one source."""

    name: Text
    """The source's name, or its place, as in train-1."""
    rows: int
    """Rows it was measured on."""
    base: float | None = None
    """The base model's value."""
    few_shot: float | None = None
    """The value of the base model prompted with examples."""
    tuned: float | None = None
    """The tuned model's value."""
    low: float | None = None
    """Lower end of the 95% interval of the gain over the base model."""
    high: float | None = None
    """Upper end of that interval."""


class Merged(StatusModel):
    """The merged weights on the held-out rows, read back as they were written."""

    loss: float
    """Mean cross-entropy of the answers' tokens on the rows that all models were measured on, in nats."""
    loss_change: float
    """The same minus the loss of base and adapter side by side."""
    rows: int
    """Held-out rows the merged model answered again; 0 where no metric asks for answers."""
    exact_match: float | None = None
    """Share of these answered word for word, 0 to 1."""
    exact_match_change: float | None = None
    """The same minus the share of the tuned model on these rows."""
    changed: bool
    """Whether either change is beyond its tolerance: 0.01 nats, 5 points."""
    message: Message
    """What merging changed, in one sentence."""


class Quantized(StatusModel):
    """What quantizing alone costs, under QLoRA: the base model in 4 bits on the held-out rows, before any training."""

    loss: float
    """Mean cross-entropy of the answers' tokens, in nats."""
    loss_change: float | None = None
    """The same minus the loss of the base model in bfloat16; absent where that does not fit the device."""
    message: Message
    """What quantizing changed, or why it is not known, in a sentence or two."""


class Evaluation(StatusModel):
    """The models side by side."""

    rows: int
    """Held-out rows all were measured on."""
    base: Metrics | None = None
    """The base model, given the same prompts: in bfloat16, as it would be served. Under QLoRA, where that does not fit
    the device, in 4 bits; then quantized has no lossChange."""
    few_shot: Metrics | None = None
    """The base model with examples before each prompt, in the mean of three draws."""
    tuned: Metrics | None = None
    """The base model with the adapter; under QLoRA over 4-bit weights, as it was trained."""
    quantized: Quantized | None = None
    """What quantizing alone costs, under QLoRA."""
    merged: Merged | None = None
    """The merged weights, where output.merge asked for them."""
    decision: Decision | None = None
    """The metric the verdict goes by."""
    sources: Annotated[list[SourceResult], Field(max_length=32), SchemaKeys(ATOMIC)] | None = None
    """Source by source, where the held-out rows come from several."""
    gates: Annotated[list[GateResult], Field(max_length=64), SchemaKeys(ATOMIC)] | None = None
    """What the tuned model had to reach."""
    regression: Annotated[list[RegressionResult], Field(max_length=8), SchemaKeys(ATOMIC)] | None = None
    """Sets of rows on which it must not be much worse."""
    passed: bool | None = None
    """Whether it passed all gates and regression sets; absent where there are none."""
    verdict: Message | None = None
    """Whether tuning was worth it, in one sentence."""
    observed_time: Time
    """When this was written."""
