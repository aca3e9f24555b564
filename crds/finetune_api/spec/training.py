"""What a tenant writes about the training: the recipe."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.model import ApiModel, Seed


class Optimizer(StrEnum):
    """What turns gradients into updates."""

    ADAMW = "AdamW"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"


class Scheduler(StrEnum):
    """How the learning rate falls after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class GradientCheckpointing(StrEnum):
    """Whether activations are computed again in the backward pass rather than kept."""

    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Publish(StrEnum):
    """Which weights become the result."""

    BEST = "Best"
    LAST = "Last"


class LossOn(StrEnum):
    """Which tokens of a row are learned."""

    COMPLETION = "Completion"
    ALL = "All"


class EarlyStopping(ApiModel):
    """When training ends before its last step because it no longer helps."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Training stops after so many evaluations in a row in which the loss on the validation rows did not improve."""
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.0
    """By how much, in nats per token, the loss has to fall below the best so far to count as an improvement."""


class Training(ApiModel):
    """The recipe. What is not set is resolved by the preflight and shown in status.resolved."""

    epochs: Annotated[int, Field(ge=1, le=100)] = 1
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps to stop after, should the epochs be more."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default: 2e-4, and 1e-3 for models below one billion parameters; 1e-5 for method Full."""
    scheduler: Scheduler = Scheduler.COSINE
    """How the learning rate falls from its peak after the warm-up. Cosine: to a tenth at the last step. Linear: in a
    straight line that reaches 0 one step after the last. Constant: not at all."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps in which the learning rate rises to its peak. Default: 3% or 10 steps, whichever is more, but
    at most a tenth."""
    optimizer: Optimizer = Optimizer.ADAMW
    """AdamW keeps 8 bytes of state for each trained parameter. PagedAdamW8bit keeps 2, of an embedding 8, and
    moves them to the host's memory where the GPU's runs short: worth it for method Full."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay. Biases and norms are left out."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm where theirs is larger; 0 leaves them as they are."""
    global_batch_size: Annotated[int, Field(ge=1, le=65536)] = 8
    """Rows per optimizer step. How they are spread over memory never changes a step."""
    micro_batch_tokens: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Tokens put through the model at a time, at most; what does not fit into the GPU's memory is halved before the
    first step. It changes speed and memory, not the result. Default: on a GPU the most that fits, up to 16384; on a
    CPU 2048. Never less than the longest row."""
    gradient_checkpointing: GradientCheckpointing = GradientCheckpointing.AUTO
    """Enabled computes activations again in the backward pass in place of keeping them: a third slower, for a fraction
    of the memory, and the same result. Auto: only where it does not fit otherwise."""
    max_sequence_length: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Longest row in tokens, prompt and answer together. Default: the longest row of the data, at most the model's
    context and at most 4096."""
    loss_on: LossOn = LossOn.COMPLETION
    """Which tokens are learned. Completion: the answers and their ends. All: prompts too. Rows of format Text are
    learned whole in either case."""
    evaluate_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps after which the loss on the validation rows is measured, beside the last, on 500 of them at
    most. Default: a fifth of the steps, and at least once an epoch."""
    early_stopping: EarlyStopping | None = None
    """Ends the training before its last step where it no longer helps. Default: it runs to the last step."""
    publish: Publish | None = None
    """Best publishes the weights with the lowest loss on the validation rows, Last those of the last step. Default:
    Best, and Last where there are no validation rows."""
    seed: Seed = 0
    """Seed of everything random: the order of rows, the adapter's first weights, dropout."""
