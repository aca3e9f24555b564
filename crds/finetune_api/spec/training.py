"""The fields of a FineTuneJob about the training."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.model import ApiModel, Seed


class Optimizer(StrEnum):
    """The algorithm that updates the weights from the gradients."""

    ADAMW = "AdamW"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"


class Scheduler(StrEnum):
    """How the learning rate decreases after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class GradientCheckpointing(StrEnum):
    """Whether activations are recomputed in the backward pass instead of stored."""

    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Publish(StrEnum):
    """Which weights become the result."""

    BEST = "Best"
    LAST = "Last"


class LossOn(StrEnum):
    """Which tokens of a row the model learns."""

    COMPLETION = "Completion"
    ALL = "All"


class EarlyStopping(ApiModel):
    """When training stops before the last step because the validation loss no longer improves."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Number of consecutive evaluations without an improvement after which training stops."""
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Smallest decrease of the loss below the best loss so far that counts as an improvement, in nats per token."""


class Checkpoint(ApiModel):
    """When a checkpoint is written, and how many are kept."""

    every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Number of optimizer steps between two checkpoints. Default: a fifth of the steps or 60 seconds, whichever comes
    first, but never so often that checkpoints cost more than 1% of the time."""
    keep: Annotated[int, Field(ge=1, le=100)] | None = None
    """Number of checkpoints to keep while the job runs. Older ones are deleted. Default: 2."""


class Training(ApiModel):
    """Training settings, for example epochs and learning rate. The preflight chooses the values that are not set, and
    status.resolved reports them."""

    epochs: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of passes over the training rows."""
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Largest number of optimizer steps. Training stops there even if the epochs are not complete. Default: the steps
    of all epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default: 2e-4; 1e-3 for models below one billion parameters; 1e-5 for method Full."""
    scheduler: Scheduler = Scheduler.COSINE
    """How the learning rate decreases from its peak after the warm-up. Cosine: along a cosine to 10% of the peak at the
    last step. Linear: along a straight line that reaches 0 one step after the last step. Constant: the learning rate
    does not decrease."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps during which the learning rate rises to its peak. Default: 3% of the steps or 10 steps,
    whichever is more, but at most 10% of the steps."""
    optimizer: Optimizer = Optimizer.ADAMW
    """Optimizer. AdamW stores 8 bytes of state per trained parameter. PagedAdamW8bit stores 2 bytes (8 bytes for
    embeddings) and moves them to the host's memory if the GPU runs out of memory; it is useful for method Full."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay. It does not apply to biases and norms."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Largest norm of the gradients. Larger gradients are scaled down to this norm; 0 disables the limit."""
    global_batch_size: Annotated[int, Field(ge=1, le=65536)] = 8
    """Rows per optimizer step. The division of these rows into micro-batches does not change the result of a step."""
    micro_batch_tokens: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Largest number of tokens in a micro-batch. If a micro-batch does not fit into the GPU memory, the number is
    halved before the first step. The value changes speed and memory use, not the result. Default: on a GPU, the
    largest number that fits, up to 16384, found by trials, or by the preflight if the weights are sharded over several
    GPUs; on a CPU, 2048. The value used is never below the longest row."""
    gradient_checkpointing: GradientCheckpointing = GradientCheckpointing.AUTO
    """Gradient checkpointing. Enabled: activations are recomputed in the backward pass instead of stored; training is
    about a third slower, needs a fraction of the memory, and gives the same result. Auto: enabled only if training
    does not fit into the memory otherwise."""
    max_sequence_length: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Largest length of a row in tokens, prompt and answer together. Default: the length of the longest row, but at
    most the context of the model and at most 4096."""
    loss_on: LossOn = LossOn.COMPLETION
    """Which tokens the model learns. Completion: the answers and their end-of-turn tokens. All: the prompts too. For
    rows of format Text, the model learns all tokens with either value."""
    evaluate_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Number of optimizer steps between two measurements of the loss on the validation rows. The loss is also measured
    after the last step. At most 500 validation rows are used. Default: a fifth of the steps, and at least once per
    epoch."""
    early_stopping: EarlyStopping | None = None
    """Stops training before the last step if the validation loss no longer improves. Default: training runs to the last
    step."""
    publish: Publish | None = None
    """Which weights are published. Best: the weights with the lowest loss on the validation rows. Last: the weights of
    the last step. Default: Best, or Last if there are no validation rows."""
    checkpoint: Checkpoint | None = None
    """Checkpoints, with which a later attempt resumes the training where an earlier one was stopped. They are stored
    below output.uri and deleted when the job completes."""
    seed: Seed = 0
    """Seed of all random choices: the order of rows, the initial weights of the adapter, and dropout."""
