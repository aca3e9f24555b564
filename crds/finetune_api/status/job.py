"""FineTuneJob's status: what the operator, the preflight pod and the attempt's pod each write of it.

Every field and every condition type has exactly one writer, which applies it server-side under its own field manager:

- operator (`finetune-operator`): everything not named below.
- preflight pod (`preflight`): `preflight`, `resolved`, condition Validated. Where that pod ended without a word
  (killed, image missing), the operator says Validated=False in its place.
- attempt's pod (`attempt-N`): `training`, `evaluation`, `artifacts`, conditions Trained and Evaluated.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import SchemaKeys, StatusModel, list_map
from finetune_api.status.evaluation import Evaluation
from finetune_api.status.fields import Message, Reason, Text, Time
from finetune_api.status.preflight import Preflight, Resolved

OPERATOR_MANAGER = "finetune-operator"
PREFLIGHT_MANAGER = "preflight"


def attempt_manager(attempt: int) -> str:
    """Field manager of attempt number `attempt`, counted from 1."""
    return f"attempt-{attempt}"


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
    validation_loss: float | None = None
    """Mean cross-entropy on the validation rows when it was last measured, in nats."""
    best_validation_loss: float | None = None
    """The lowest of them so far."""
    best_step: int | None = None
    """Optimizer steps done when it was the lowest."""
    micro_batch_tokens: int | None = None
    """Tokens put through the model at a time, as found to fit the memory."""
    packed: bool | None = None
    """Whether rows share a sequence. Where they would change each other in this model, each goes through it alone."""
    gradient_checkpointing: bool | None = None
    """Whether activations are computed again in the backward pass, to save memory."""
    gpu_memory: Text | None = None
    """Most GPU memory in use so far, for example 21.4Gi; absent on a CPU."""
    tokens_per_second: float | None = None
    """All tokens of a step, prompts and answers, over its time; mean since the start."""
    estimated_completion_time: Time | None = None
    """When the last step should be done, at this speed."""
    observed_time: Time
    """When this was written."""


class Artifacts(StatusModel):
    """Where the results lie."""

    adapter: Text | None = None
    """Folder of the adapter, in PEFT's layout, with the tokenizer; absent under method Full."""
    model: Text | None = None
    """Folder of the whole tuned model, in Transformers' layout, with the tokenizer; only under method Full."""
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

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.is_true(ConditionType.COMPLETE) or self.is_true(ConditionType.FAILED)

    def is_true(self, type: ConditionType) -> bool:
        """Whether that condition is there and True."""
        condition = self.condition(type)
        return condition is not None and condition.status == "True"
