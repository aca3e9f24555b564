"""The status of a FineTuneJob, which the operator, the preflight pod and the attempt's pod write.

Every field and every condition type has exactly one writer. Each writer uses server-side apply with its own field
manager:

- operator (`finetune-operator`): all fields and conditions that are not listed below.
- preflight pod (`preflight`): `preflight`, `resolved`, condition Validated. If that pod
  ended without writing it (killed, image missing), the operator writes Validated=False instead.
- attempt's pod (`attempt-N`): `training`, `evaluation`, `artifacts`, conditions Trained and Evaluated.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import SchemaKeys, StatusModel, list_map
from finetune_api.status.attempts import RECORDED, Attempt, Counts, Money
from finetune_api.status.chosen_gpu import ChosenGpuType
from finetune_api.status.evaluation import Evaluation
from finetune_api.status.fields import Message, Reason, Text, Time
from finetune_api.status.preflight import Preflight, Resolved

OPERATOR_MANAGER = "finetune-operator"
PREFLIGHT_MANAGER = "preflight"
_ATTEMPT = "attempt-"


def attempt_manager(attempt: int) -> str:
    """Return the field manager of attempt number `attempt`, counted from 1."""
    return f"{_ATTEMPT}{attempt}"


def attempt_of(manager: str) -> int | None:
    """Return the number of the attempt that writes under this field manager; None for another field manager."""
    number = manager.removeprefix(_ATTEMPT)
    return int(number) if manager.startswith(_ATTEMPT) and number.isdecimal() else None


class State(StrEnum):
    """State of the job in one word, for people."""

    PENDING = "Pending"
    VALIDATING = "Validating"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Stage(StrEnum):
    """Current part of the work."""

    PREFLIGHT = "Preflight"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"


class ConditionType(StrEnum):
    """Condition types of a FineTuneJob."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    VALIDATED = "Validated"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    CHECKPOINTS_DELETED = "CheckpointsDeleted"


class Condition(StatusModel):
    """A condition of the job, as in meta/v1 Condition."""

    type: Annotated[str, Field(max_length=64)]
    """Type of the condition: Ready, Reconciling, Stalled, Complete, Failed, Suspended, Validated, Trained,
    Evaluated or CheckpointsDeleted."""
    status: Annotated[Literal["True", "False", "Unknown"], SchemaKeys({"type": "string"})]
    """Whether the condition is true."""
    reason: Reason
    """Cause of the status, as one CamelCase word for programs."""
    message: Message = ""
    """Cause of the status, as a sentence for people."""
    observed_generation: int | None = None
    """metadata.generation to which the condition applies."""
    last_transition_time: Time
    """When the status of the condition last changed."""


class Training(StatusModel):
    """Progress of the current attempt."""

    attempt: int
    """Number of the attempt that writes this progress."""
    device: Text | None = None
    """Device of the training: the name of the GPU, or cpu."""
    model_seconds: float | None = None
    """Seconds that it took to fetch the base model from its source or from the cache, on the slowest node. All GPUs of
    the attempt wait for this time."""
    step: int
    """Number of optimizer steps that are done."""
    total_steps: int
    """Number of optimizer steps in total."""
    resumed_from_step: int | None = None
    """Step of the checkpoint with which this attempt began; absent if it began at the first step."""
    checkpoint_step: int | None = None
    """Step of the last checkpoint that was uploaded, also by an earlier attempt. A later attempt resumes there."""
    kept_results: int | None = None
    """Number of results in the job's storage that a later attempt takes over: measurements, parts of the models'
    answers, and the tuned weights. The results of earlier attempts count too."""
    epoch: float | None = None
    """Number of passes over the training rows that are done."""
    loss: float | None = None
    """Mean cross-entropy of the learned tokens of the last step, in nats."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    validation_loss: float | None = None
    """Mean cross-entropy on the validation rows at the last measurement, in nats."""
    best_validation_loss: float | None = None
    """Lowest validation loss so far."""
    best_step: int | None = None
    """Number of optimizer steps at which the validation loss was lowest."""
    micro_batch_tokens: int | None = None
    """Number of tokens in a micro-batch, adjusted to the memory."""
    packed: bool | None = None
    """Whether several rows are packed into one sequence. If packing would change the results of this model, each row is
    processed separately."""
    gradient_checkpointing: bool | None = None
    """Whether activations are recomputed in the backward pass to save memory (gradient checkpointing)."""
    gpu_memory: Text | None = None
    """Peak GPU memory so far, for example 21.4Gi; absent on a CPU."""
    tokens_per_second: float | None = None
    """Tokens per second, prompts and answers, as the mean since the start."""
    estimated_completion_time: Time | None = None
    """Expected time of the last step at the current speed."""
    observed_time: Time
    """When this part of the status was written."""


class Artifacts(StatusModel):
    """Locations of the results."""

    adapter: Text | None = None
    """Folder of the adapter in the layout of PEFT, with the tokenizer; absent for method Full."""
    model: Text | None = None
    """Folder of the whole tuned model in the layout of Transformers, with the tokenizer; only for method Full."""
    merged: Text | None = None
    """Folder of the merged model, if output.merge is true."""
    report: Text
    """The report, as one self-contained HTML page."""
    manifest: Text
    """manifest.json, which lists every file with its size and sha256, and the inputs of the results. It is written
    last."""
    digest: Text
    """sha256 of manifest.json."""


class FineTuneJobStatus(StatusModel):
    """Status of the job."""

    observed_generation: int | None = None
    """metadata.generation to which the status applies; -1 until the operator has seen the job."""
    state: State | None = None
    """State of the job in one word."""
    stage: Stage | None = None
    """Current part of the work."""
    conditions: Annotated[list[Condition], Field(max_length=32), list_map("type")] | None = None
    """Ready, Reconciling and Stalled follow the rules of kstatus. Complete or Failed is added at the end. Suspended is
    added when the job is suspended. Validated, Trained and Evaluated are added during the work. CheckpointsDeleted is
    added to a failed job, and tells whether its checkpoints and other temporary objects were deleted."""
    counts: Counts | None = None
    """How often training was tried."""
    attempts: Annotated[list[Attempt], Field(max_length=RECORDED), list_map("number")] | None = None
    """The last ten attempts."""
    preflights: Annotated[list[Attempt], Field(max_length=RECORDED), list_map("number")] | None = None
    """The last ten preflights that ended without a result and were repeated, or could not be repeated. One that was
    stopped because the job was suspended is among them, with the reason Suspended."""
    gpu_type: ChosenGpuType | None = None
    """The GPU type that all attempts of the job use, and why, as it was in the FineTuneProfile when the first attempt
    was started. A later attempt uses the type of this name as the FineTuneProfile has it then."""
    bundle_digest: Text | None = None
    """sha256 of the input of the pods as the operator wrote it to the ConfigMap of the job. A ConfigMap with another
    content is replaced before a pod is created."""
    start_time: Time | None = None
    """When the first training pod was scheduled. spec.runPolicy.activeDeadlineSeconds counts from then."""
    gpu_seconds: int | None = None
    """Seconds for which the ended pods of all attempts held a GPU, added up over their GPUs."""
    cost: Money | None = None
    """Cost of gpuSeconds as a decimal string, at the price of the FineTuneProfile when each attempt was started; absent
    without a price."""
    preflight: Preflight | None = None
    """Results of the preflight."""
    resolved: Resolved | None = None
    """The settings that the job uses where the spec sets none."""
    training: Training | None = None
    """Progress of the current attempt."""
    evaluation: Evaluation | None = None
    """Comparison of the tuned model with the baselines."""
    artifacts: Artifacts | None = None
    """Locations of the results."""

    def condition(self, type: ConditionType) -> Condition | None:
        """Return the condition of this type; None if it does not exist."""
        return next((c for c in self.conditions or [] if c.type == type), None)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.is_true(ConditionType.COMPLETE) or self.is_true(ConditionType.FAILED)

    def is_true(self, type: ConditionType) -> bool:
        """Whether the condition exists and has status True."""
        condition = self.condition(type)
        return condition is not None and condition.status == "True"
