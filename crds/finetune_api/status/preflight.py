"""What the preflight writes of the status: what the rows hold, and what the attempts will do with them."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import SchemaKeys, StatusModel, list_map
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Publish
from finetune_api.status.fields import Message, Reason, Text, Time


class Splits(StatusModel):
    """Rows after cleaning and splitting."""

    train: int
    """Rows to learn from."""
    validation: int = 0
    """Rows to look at while training."""
    test: int
    """Held-out rows that base and tuned model are compared on."""


class Estimate(StatusModel):
    """What the job should take on one GPU of a kind."""

    gpu_type: Text
    """Name of the kind of GPU in the FineTuneProfile."""
    memory: Text
    """GPU memory at the peak, for example 21.4Gi."""
    fits: bool | None = None
    """Whether it can run in the memory the profile gives that kind; absent where the profile gives none."""
    alternative: Message | None = None
    """What would fit, where it does not."""
    seconds: int | None = None
    """From the pod's start to the results; absent for a kind of GPU that is not known. It can be half or twice that."""
    cost: Text | None = None
    """Those seconds at the profile's price, as a decimal string; absent without a price."""


class CleaningStep(StatusModel):
    """What one step of the cleaning did."""

    name: Annotated[str, Field(max_length=64)]
    """Its field under dataset.clean; of a list with the index or the value, as remove[0] or mask[Email]."""
    rows: int
    """Rows it changed."""


class Cleaned(StatusModel):
    """What cleaning did."""

    rows: int
    """Rows that any step changed."""
    emptied: int
    """Rows that were dropped because nothing was left of their question or answer."""
    steps: Annotated[list[CleaningStep], Field(max_length=40), list_map("name")]
    """Every step, in the order they ran."""


ADVICE, ADVICE_LENGTH = 32, 1024


class Advice(StatusModel):
    """What a specialist would change about the job, though it can run."""

    reason: Reason
    """What it is about, in one CamelCase word for programs."""
    message: Text
    """The finding with its number, and what to do about it."""


class Severity(StrEnum):
    """What becomes of a row with a finding."""

    ERROR = "Error"
    WARNING = "Warning"


FINDINGS, FINDING_PLACES = 20, 3


class Finding(StatusModel):
    """One kind of thing that is wrong with rows."""

    severity: Severity
    """Error: such rows cannot be used. Warning: they are used, and look wrong."""
    message: Annotated[str, Field(max_length=256)]
    """What is wrong."""
    rows: int
    """Rows it was found in."""
    places: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=FINDING_PLACES)]
    """The first of them, as FILE line LINE."""


class SourceRows(StatusModel):
    """What one source gave."""

    side: Annotated[str, Field(max_length=16)]
    """The list it stands in: train, validation or test."""
    name: Annotated[str, Field(max_length=63)]
    """The source's name, or its place, as train-1."""
    rows: int
    """Rows that are used, on whichever side of the split."""
    tokens: int
    """Their tokens."""


class Preflight(StatusModel):
    """What the check of the data found, before any GPU was asked for."""

    rows: int | None = None
    """Rows read from all sources."""
    invalid: int | None = None
    """Rows that are not valid in their format. They are left out as long as dataset.maxInvalidFraction allows."""
    findings: Annotated[list[Finding], Field(max_length=FINDINGS), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | (
        None
    ) = None
    """What is wrong with rows, by kind: errors first, the most frequent first."""
    cleaned: Cleaned | None = None
    """What dataset.clean changed."""
    duplicates: int | None = None
    """Exact copies that were dropped."""
    near_duplicates: int | None = None
    """Rows that nearly repeat an earlier one: dropped under dataset.deduplicate.near Drop, else kept beside it on one
    side of the split."""
    overlength: int | None = None
    """Rows dropped for being longer than training.maxSequenceLength."""
    leaked: int | None = None
    """Test rows whose question and answer also occur in the training rows, at least nearly, so that right answers to
    them prove nothing. The verdict goes by the other test rows."""
    tokens: int | None = None
    """Tokens of one epoch, prompts and answers."""
    supervised_tokens: int | None = None
    """Tokens of one epoch that are learned: the answers and their ends."""
    sources: Annotated[list[SourceRows], Field(max_length=96), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | (
        None
    ) = None
    """Rows and tokens of each source of train, validation and test."""
    splits: Splits | None = None
    """Rows on each side of the split."""
    advice: (
        Annotated[list[Advice], Field(max_length=ADVICE), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """What a specialist would change, the gravest first."""
    digest: Text | None = None
    """sha256 over the rows, the tokenizer, the chat template, the lengths and the split: equal digests,
    equal training data."""
    estimate: Annotated[list[Estimate], Field(max_length=16), list_map("gpuType")] | None = None
    """Memory, time and cost to expect, for each kind of GPU of the profile."""
    observed_time: Time | None = None
    """When this was written."""


class Resolved(StatusModel):
    """What the run uses where the spec left the choice open."""

    method: MethodType
    """How the weights are tuned; never Auto."""
    method_reason: Text | None = None
    """Why Auto chose that method."""
    learning_rate: float
    """Peak learning rate."""
    warmup_steps: int
    """Optimizer steps of linear warm-up."""
    total_steps: int
    """Optimizer steps of the whole run."""
    max_sequence_length: int
    """Longest row in tokens."""
    micro_batch_tokens: int
    """Tokens put through the model at a time, as planned; eight times as many while held-out rows are answered.
    training.microBatchTokens says what training used."""
    evaluate_every: int | None = None
    """Optimizer steps between two measurements of the validation loss; absent where there are no validation rows."""
    publish: Publish | None = None
    """Which weights become the result: those with the best validation loss, or the last."""
    max_new_tokens: int
    """Longest answer the evaluation lets a model write."""
    metrics: (
        Annotated[list[MetricName], Field(max_length=len(MetricName)), SchemaKeys({"x-kubernetes-list-type": "atomic"})]
        | None
    ) = None
    """What the evaluation measures; the first one decides the verdict."""
    prompt_format: Literal["ChatTemplate", "Plain"]
    """ChatTemplate: the tokenizer's own. Plain: the model has none, so prompt and answer follow each other as text."""
    parameters: int
    """Parameters of the base model."""
    base_memory: Text | None = None
    """Under QLoRA, the memory a GPU must have, or on a CPU compute.memory must be, for the base model to be measured in
    bfloat16, for example 21.4Gi; with less it is measured in 4 bits."""
