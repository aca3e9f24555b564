"""The preflight's part of the status: what it found in the rows, and the settings of the training."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import SchemaKeys, StatusModel, list_map
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.gpu_type import MOST_GPU_TYPES
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Publish
from finetune_api.status.fields import Message, Reason, Text, Time


class Splits(StatusModel):
    """Rows after cleaning and splitting."""

    train: int
    """Number of training rows."""
    validation: int = 0
    """Number of validation rows."""
    test: int
    """Number of test rows, on which the base model and the tuned model are compared."""


class Estimate(StatusModel):
    """Prediction for the job on one GPU of a type."""

    gpu_type: Text
    """Name of the GPU type in the FineTuneProfile."""
    memory: Text
    """Peak GPU memory, for example 21.4Gi."""
    fits: bool | None = None
    """Whether the job fits into the memory of this GPU type; absent if the profile does not set the memory."""
    sharded: bool | None = None
    """True if the weights are sharded over the GPUs of the job (FSDP2), because a GPU of this type is too small for the
    whole model. Otherwise absent: each GPU has the whole model."""
    alternative: Message | None = None
    """Settings that would fit, if the job does not fit."""
    seconds: int | None = None
    """Seconds from the start of the pod to the results; absent for an unknown GPU type. The real time can be between
    half and twice this value."""
    cost: Text | None = None
    """Cost of those seconds at the price in the profile, as a decimal string; absent without a price."""


class CleaningStep(StatusModel):
    """Result of one cleaning step."""

    name: Annotated[str, Field(max_length=64)]
    """Field of the step under dataset.clean. For lists with the index or the value, for example remove[0] or
    mask[Email]."""
    rows: int
    """Number of rows that the step changed."""


class Cleaned(StatusModel):
    """Result of the cleaning."""

    rows: int
    """Number of rows that at least one step changed."""
    emptied: int
    """Number of rows that were dropped because their prompt or answer was empty after cleaning."""
    steps: Annotated[list[CleaningStep], Field(max_length=40), list_map("name")]
    """All steps, in the order in which they ran."""


ADVICE, ADVICE_LENGTH = 32, 1024


class Advice(StatusModel):
    """Advice of an expert about a job that can run."""

    reason: Reason
    """Subject of the advice, as one CamelCase word for programs."""
    message: Text
    """The finding with its number, and what to do about it."""


class Severity(StrEnum):
    """What happens to a row with a finding."""

    ERROR = "Error"
    WARNING = "Warning"


FINDINGS, FINDING_PLACES = 20, 3


class Finding(StatusModel):
    """One kind of problem in the rows."""

    severity: Severity
    """Error: these rows are not used. Warning: these rows are used, but they look wrong."""
    message: Annotated[str, Field(max_length=256)]
    """The problem."""
    rows: int
    """Number of rows with this problem."""
    places: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=FINDING_PLACES)]
    """The first of these rows, as FILE line LINE."""


class SourceRows(StatusModel):
    """Rows and tokens of one source."""

    side: Annotated[str, Field(max_length=16)]
    """The list that contains the source: train, validation or test."""
    name: Annotated[str, Field(max_length=63)]
    """Name of the source, or the list and the position in it, for example train-1."""
    rows: int
    """Number of rows that are used, on any side of the split."""
    tokens: int
    """Number of tokens of these rows."""


class Preflight(StatusModel):
    """Results of the preflight, which checks the data before the job requests a GPU."""

    rows: int | None = None
    """Number of rows that were read from all sources."""
    invalid: int | None = None
    """Number of rows that are invalid in their format. Invalid rows are not used. The job fails if their share exceeds
    dataset.maxInvalidFraction."""
    findings: Annotated[list[Finding], Field(max_length=FINDINGS), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | (
        None
    ) = None
    """Problems in the rows, by kind: errors first, then the most frequent first."""
    cleaned: Cleaned | None = None
    """What dataset.clean changed."""
    duplicates: int | None = None
    """Number of exact duplicates that were dropped."""
    near_duplicates: int | None = None
    """Number of near-duplicates of an earlier row. They are dropped if dataset.deduplicate.near is Drop; otherwise they
    are kept on the same side of the split."""
    overlength: int | None = None
    """Number of rows that were dropped because they are longer than training.maxSequenceLength."""
    leaked: int | None = None
    """Number of test rows whose prompt and answer also occur in the training rows, exactly or as near-duplicates (data
    leakage). Scores on these rows are inflated, so the verdict uses the other test rows."""
    tokens: int | None = None
    """Number of tokens of one epoch, prompts and answers."""
    supervised_tokens: int | None = None
    """Number of tokens of one epoch that the model learns: the answers and their end-of-turn tokens."""
    sources: Annotated[list[SourceRows], Field(max_length=96), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | (
        None
    ) = None
    """Rows and tokens of each source of train, validation and test."""
    splits: Splits | None = None
    """Number of rows on each side of the split."""
    advice: (
        Annotated[list[Advice], Field(max_length=ADVICE), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """Advice of an expert, the most important first."""
    digest: Text | None = None
    """sha256 of the rows, the tokenizer, the chat template, the length limits and the split. Equal digests mean equal
    training data."""
    estimate: Annotated[list[Estimate], Field(max_length=MOST_GPU_TYPES), list_map("gpuType")] | None = None
    """Predicted memory, time and cost, for each GPU type of the profile."""
    observed_time: Time | None = None
    """When this part of the status was written."""


class Revision(StatusModel):
    """The commit of a repository on a hub that the job reads."""

    uri: Text
    """The repository, as hf://ORG/NAME or hf://datasets/ORG/NAME."""
    commit: Annotated[str, Field(max_length=64)]
    """The commit, to which the preflight resolved the branch or tag."""


REVISIONS = 256


class Resolved(StatusModel):
    """The settings that the job uses where the spec sets none."""

    method: MethodType
    """Method of tuning; never Auto."""
    method_reason: Text | None = None
    """Why Auto chose that method."""
    learning_rate: float
    """Peak learning rate."""
    warmup_steps: int
    """Number of optimizer steps of the linear warm-up."""
    total_steps: int
    """Number of optimizer steps of the whole training."""
    max_sequence_length: int
    """Largest length of a row in tokens."""
    micro_batch_tokens: int
    """Planned number of tokens in a micro-batch. During the evaluation eight times as many tokens are processed at
    once. training.microBatchTokens reports the number that training used."""
    sharded_micro_batch_tokens: int | None = None
    """Predicted number of tokens in a micro-batch of a training whose weights are sharded over the GPUs; absent if they
    are on no GPU type."""
    evaluate_every: int | None = None
    """Number of optimizer steps between two measurements of the validation loss; absent if there are no validation
    rows."""
    publish: Publish | None = None
    """Which weights are published: Best, those with the lowest validation loss, or Last."""
    max_new_tokens: int
    """Largest length of an answer in the evaluation, in tokens."""
    metrics: (
        Annotated[list[MetricName], Field(max_length=len(MetricName)), SchemaKeys({"x-kubernetes-list-type": "atomic"})]
        | None
    ) = None
    """Metrics of the evaluation. The first metric decides the verdict."""
    prompt_format: Literal["ChatTemplate", "Plain"]
    """ChatTemplate: prompts are formatted with the tokenizer's chat template. Plain: the model has no chat template, so
    the answer follows the prompt as plain text."""
    parameters: int
    """Number of parameters of the base model."""
    base_memory: Text | None = None
    """Under QLoRA, the memory that is needed to measure the base model in bfloat16, for example 21.4Gi: GPU memory, or
    compute.memory on a CPU. With less memory the base model is measured in 4 bits."""
    revisions: Annotated[list[Revision], Field(max_length=REVISIONS), list_map("uri")] | None = None
    """Commits of the repositories behind the job's hf:// URIs. Every attempt reads these commits."""
