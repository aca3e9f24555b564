"""FineTuneJob's status: what the operator, the preflight pod and the attempt's pod each write of it.

Every field and every condition type has exactly one writer, which applies it server-side under its own field manager:

- operator (`finetune-operator`): everything not named below.
- preflight pod (`preflight`): `preflight`, `resolved`, condition Validated. Where that pod ended without a word
  (killed, image missing), the operator says Validated=False in its place.
- attempt's pod (`attempt-N`): `training`, `evaluation`, `artifacts`, conditions Trained and Evaluated.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from finetune_api.job import MethodType
from finetune_api.model import SchemaKeys, StatusModel, list_map

OPERATOR_MANAGER = "finetune-operator"
PREFLIGHT_MANAGER = "preflight"


def attempt_manager(attempt: int) -> str:
    """Field manager of attempt number `attempt`, counted from 1."""
    return f"attempt-{attempt}"


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    datetime, PlainSerializer(_rfc3339, when_used="json"), SchemaKeys({"type": "string", "format": "date-time"})
]
Text = Annotated[str, Field(max_length=1024)]
MESSAGE_LENGTH = 4096
Message = Annotated[str, BeforeValidator(lambda text: text[:MESSAGE_LENGTH]), Field(max_length=MESSAGE_LENGTH)]
"""Cut rather than refused: the words of a kubelet or a scheduler have no bound, and a job has to be able to end."""
Reason = Annotated[str, Field(max_length=64)]
"""CamelCase word for programs; an open string, so that a new one needs no new schema."""


class State(StrEnum):
    """Where the job is, in one word for people."""

    PENDING = "Pending"
    VALIDATING = "Validating"
    QUEUED = "Queued"
    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Stage(StrEnum):
    """The part of the work the job is in."""

    PREFLIGHT = "Preflight"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"


class ConditionType(StrEnum):
    """The conditions a job can carry."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    COMPLETE = "Complete"
    FAILED = "Failed"
    VALIDATED = "Validated"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"


class Condition(StatusModel):
    """A statement about the job, as meta/v1 Condition."""

    type: Annotated[str, Field(max_length=64)]
    """What the statement is about: Ready, Reconciling, Stalled, Complete, Failed, Validated, Trained or Evaluated."""
    status: Annotated[Literal["True", "False", "Unknown"], SchemaKeys({"type": "string"})]
    """Whether it holds."""
    reason: Reason
    """Why, in one CamelCase word for programs."""
    message: Message = ""
    """Why, in one sentence for people."""
    observed_generation: int | None = None
    """metadata.generation the statement was made for."""
    last_transition_time: Time
    """When status last changed."""


class Counts(StatusModel):
    """How often the job was tried."""

    attempts: int = 0
    """Training attempts started."""


class Attempt(StatusModel):
    """One training attempt: one Job, one Pod."""

    number: int
    """Counted from 1."""
    name: Text
    """Name of its Job."""
    start_time: Time | None = None
    """When its pod started."""
    completion_time: Time | None = None
    """When its pod ended."""
    reason: Reason | None = None
    """Why it ended: Succeeded, or a failure reason."""
    message: Message | None = None
    """Why it ended, in one sentence."""
    exit_code: int | None = None
    """Exit code of the trainer."""
    node_name: Text | None = None
    """Node it ran on."""


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


ADVICE, ADVICE_LENGTH = 16, 1024


class Advice(StatusModel):
    """What a specialist would change about the job, though it can run."""

    reason: Reason
    """What it is about, in one CamelCase word for programs."""
    message: Text
    """The finding with its number, and what to do about it."""


class Preflight(StatusModel):
    """What the check of the data found, before any GPU was asked for."""

    rows: int | None = None
    """Rows read from all sources."""
    invalid: int | None = None
    """Rows that are not valid in their format."""
    cleaned: Cleaned | None = None
    """What dataset.clean changed."""
    duplicates: int | None = None
    """Exact copies that were dropped."""
    near_duplicates: int | None = None
    """Rows that nearly repeat an earlier one: dropped under dataset.deduplicate.near Drop, else kept beside it on one
    side of the split."""
    overlength: int | None = None
    """Rows dropped for being longer than training.maxSequenceLength."""
    tokens: int | None = None
    """Tokens of one epoch, prompts and answers."""
    supervised_tokens: int | None = None
    """Tokens of one epoch that are learned: the answers and their ends."""
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
    """How the weights are tuned."""
    learning_rate: float
    """Peak learning rate."""
    warmup_steps: int
    """Optimizer steps of linear warm-up."""
    total_steps: int
    """Optimizer steps of the whole run."""
    max_sequence_length: int
    """Longest row in tokens."""
    micro_batch_tokens: int
    """Tokens put through the model at a time."""
    max_new_tokens: int
    """Longest answer the evaluation lets a model write."""
    prompt_format: Literal["ChatTemplate", "Plain"]
    """ChatTemplate: the tokenizer's own. Plain: the model has none, so prompt and answer follow each other as text."""
    parameters: int
    """Parameters of the base model."""


class Training(StatusModel):
    """Progress of the current attempt."""

    attempt: int
    """Attempt that writes this."""
    device: Text | None = None
    """What it trains on: the GPU's name, or cpu."""
    step: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps to do."""
    epoch: float | None = None
    """Passes over the data done."""
    loss: float | None = None
    """Mean cross-entropy of the last step's supervised tokens, in nats."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    tokens_per_second: float | None = None
    """All tokens of a step, prompts and answers, over its time; mean since the start."""
    estimated_completion_time: Time | None = None
    """When the last step should be done, at this speed."""
    observed_time: Time
    """When this was written."""


class Metrics(StatusModel):
    """One model on the held-out rows."""

    loss: float | None = None
    """Mean cross-entropy of the answers' tokens, in nats."""
    perplexity: float | None = None
    """exp(loss)."""
    exact_match: float | None = None
    """Share of rows answered word for word, after trimming white space, 0 to 1."""
    truncated: int | None = None
    """Answers that were cut at resolved.maxNewTokens."""


class Merged(StatusModel):
    """The merged weights on the held-out rows, read back as they were written."""

    loss: float
    """Mean cross-entropy of the answers' tokens over all held-out rows, in nats."""
    loss_change: float
    """The same minus the loss of base and adapter side by side."""
    rows: int
    """Held-out rows the merged model answered again."""
    exact_match: float
    """Share of these answered word for word, 0 to 1."""
    exact_match_change: float
    """The same minus the share of the tuned model on these rows."""
    changed: bool
    """Whether either change is beyond its tolerance: 0.01 nats, 5 points."""
    message: Message
    """What merging changed, in one sentence."""


class Evaluation(StatusModel):
    """Base and tuned model, side by side."""

    rows: int
    """Held-out rows both were measured on."""
    base: Metrics | None = None
    """The base model, given the same prompts."""
    tuned: Metrics | None = None
    """The base model with the adapter."""
    merged: Merged | None = None
    """The merged weights, where output.merge asked for them."""
    verdict: Message | None = None
    """Whether tuning was worth it, in one sentence."""
    observed_time: Time
    """When this was written."""


class Artifacts(StatusModel):
    """Where the results lie."""

    adapter: Text
    """Folder of the adapter, in PEFT's layout, with the tokenizer."""
    merged: Text | None = None
    """Folder of the merged model, where output.merge asked for it."""
    report: Text
    """The report, one self-contained page."""
    manifest: Text
    """manifest.json: every file with its size and sha256, and what it was made from. Written last."""
    digest: Text
    """sha256 of manifest.json."""


class FineTuneJobStatus(StatusModel):
    """What became of the job so far."""

    observed_generation: int | None = None
    """metadata.generation the status was made for; -1 until the operator has seen the job."""
    state: State | None = None
    """Where the job is, in one word."""
    stage: Stage | None = None
    """The part of the work the job is in."""
    conditions: Annotated[list[Condition], Field(max_length=32), list_map("type")] | None = None
    """Ready, Reconciling and Stalled as kstatus reads them; Complete or Failed at the end; Validated, Trained and
    Evaluated on the way."""
    counts: Counts | None = None
    """How often the job was tried."""
    attempts: Annotated[list[Attempt], Field(max_length=10), list_map("number")] | None = None
    """The last ten attempts."""
    preflight: Preflight | None = None
    """What the check of the data found."""
    resolved: Resolved | None = None
    """What the run uses where the spec left the choice open."""
    training: Training | None = None
    """Progress of the current attempt."""
    evaluation: Evaluation | None = None
    """Base and tuned model, side by side."""
    artifacts: Artifacts | None = None
    """Where the results lie."""

    def condition(self, type: ConditionType) -> Condition | None:
        """The condition of this type, if it is there."""
        return next((c for c in self.conditions or [] if c.type == type), None)

    def is_true(self, type: ConditionType) -> bool:
        """Whether that condition is there and True."""
        condition = self.condition(type)
        return condition is not None and condition.status == "True"
