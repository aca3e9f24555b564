"""Predicts the memory of a run at its peak, before a GPU is requested. docs/sizing.md derives every term.

All sizes are in bytes. The tensors of the training loop are counted one by one. Only the numbers of a `Device` are
measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_trainer.sizing.device import CUDA, Device
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.saved_modules import is_saved, saved_parameters, saved_tables
from finetune_trainer.sizing.shards import BF16, FP32, can_shard, gathered_bytes

FOUR_BIT = {True: 0.5 + 1 / 64 + FP32 / (64 * 256), False: 0.5 + FP32 / 64}
"""Bytes of a 4-bit weight, by whether double quantization is used (Dettmers et al. 2023, section 3). With it: half a
byte, 1 byte of scale for 64 weights, and 4 bytes for 256 scales: 4.127 bits. Without it: half a byte, and 4 bytes of
scale for 64 weights: 4.5 bits."""
ADAM = {"AdamW": 2 * FP32, "PagedAdamW8bit": 2 * (1 + FP32 / 256)}
"""Bytes of optimizer state for each trained parameter: two moments in fp32, or in 8 bits with an fp32 scale for 256
numbers (Dettmers et al. 2022). The moments of an embedding are always in fp32 (finetune_trainer.training.optimizer)."""
UNFUSED_ACTIVATIONS = {"gelu_new": 4, "gelu_fast": 4, "quick_gelu": 2}
"""Tensors of the width of the MLP that an activation function keeps, if Transformers computes the function in several
operations. All other activation functions keep one tensor: their input."""
SCORE = 8
"""Bytes kept for each attention score if scores are capped: before the cap, after the cap, and after the softmax."""
HEADROOM = 1.25
"""Safety factor on all memory except the weights, for steps that must not fail a job."""
GENERATION_FACTOR = 8
"""Tokens in memory while answers are written, as a multiple of a training micro-batch. Without gradients, only the keys
and values of each layer are kept."""

TrainedMethod = Literal["LoRA", "QLoRA", "Full"]
Optimizer = Literal["AdamW", "PagedAdamW8bit"]


@dataclass(frozen=True)
class Load:
    """The largest micro-batch of a run."""

    tokens: int
    labels: int
    """Tokens of the micro-batch that are trained on. Logits are computed only for these tokens."""
    answering: int = 0
    """Tokens of prompts and answers in memory while test rows are answered, or 0 if no test row is answered."""


@dataclass(frozen=True)
class Setup:
    """The settings of the method that decide the memory."""

    method: TrainedMethod = "LoRA"
    optimizer: Optimizer = "AdamW"
    checkpointing: bool = False
    rank: int = 16
    dropout: bool = False
    target_modules: tuple[str, ...] = ("all-linear",)
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    biases: bool = False
    """Whether all biases of the base model are also trained."""
    double_quant: bool = True
    """Whether QLoRA also quantizes the scales of its weights."""
    float32: bool = False
    """Whether QLoRA computes in fp32."""
    shards: int = 1
    """Number of GPUs over which the weights are sharded. With 1, each GPU has whole weights."""
    ranks: int = 1
    """Number of GPUs that train together."""

    @property
    def can_shard(self) -> bool:
        """Whether the weights can be sharded over several GPUs."""
        return can_shard(self.method, self.optimizer)

    @property
    def number(self) -> int:
        """Bytes of each number in computations, and of each base weight that is not in 4 bits."""
        return FP32 if self.method == "QLoRA" and self.float32 else BF16

    @property
    def residual(self) -> int:
        """Bytes of each number in the residual stream, which has the type of the embeddings."""
        return FP32 if self.method == "Full" else self.number


@dataclass(frozen=True)
class Memory:
    """Predicted memory of a run at its peak, by purpose, in bytes."""

    weights: int
    """The frozen weights of the base model. With shards also the whole weights of the layers that compute."""
    trainable: int
    """The trained parameters with their gradients and the optimizer state."""
    activations: int
    """The tensors that the forward pass keeps for the backward pass."""
    working: int
    """The largest of: logits with their gradients, buffers of one layer, and writing answers."""
    overhead: int
    """Memory of the device context and the libraries, and memory that the allocator loses."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.trainable + self.activations + self.working + self.overhead


@dataclass(frozen=True)
class MemoryPlan:
    """A way to train, and the memory that it needs."""

    setup: Setup
    load: Load
    memory: Memory


def predict(shape: ModelShape, setup: Setup, load: Load, device: Device = CUDA) -> Memory:
    """Returns the memory at the peak of training on `load` and of answering test rows."""
    weights, trainable = _weights(shape, setup), _trainable(shape, setup)
    layer = layer_activations(shape, setup, load.tokens, device)
    # With gradient checkpointing, only the input of each layer is kept, and one layer at a time is computed again.
    inputs = load.tokens * shape.layers * shape.hidden * setup.residual
    activations = inputs + layer if setup.checkpointing else shape.layers * layer
    working = max(
        _logits(shape, setup, load, device),
        load.tokens * _backward_per_token(shape, setup, device) + _buffers(shape, setup),
        # Answering keeps no activations, so it can use their memory.
        _answering(shape, setup, load.answering) - activations,
    )
    connections = device.connections if max(setup.ranks, setup.shards) > 1 else 0
    return Memory(
        weights=round(weights),
        trainable=round(trainable),
        activations=round(activations),
        working=round(working),
        overhead=round(device.runtime + connections + device.slack * (activations + working)),
    )


def base_memory(shape: ModelShape, tokens: int, device: Device = CUDA) -> int:
    """Returns the memory that evaluating the base model in bf16 needs, with micro-batches of `tokens`.

    No tensors are kept for a backward pass. So the memory is the weights, plus the largest of one layer, the logits and
    writing answers, plus the overhead. HEADROOM adds a quarter to all but the weights, because running out of memory
    while evaluating the base model must not fail the job."""
    setup = Setup()
    working = max(
        layer_activations(shape, setup, tokens, device),
        _logits(shape, setup, Load(tokens, tokens), device),
        _answering(shape, setup, GENERATION_FACTOR * tokens),
    )
    return round(BF16 * shape.stored_parameters + HEADROOM * (device.runtime + (1 + device.slack) * working))


def adapter_parameters(shape: ModelShape, setup: Setup) -> int:
    """Returns the parameters of a LoRA adapter: rank x (inputs + outputs) of each matrix (Hu et al. 2021, section
    4.1). Each expert has matrices of its own."""
    adapted = shape.targeted(setup.target_modules)
    return sum(setup.rank * (m.rows + m.columns) * m.count for m in adapted)


def trained_parameters(shape: ModelShape, setup: Setup) -> int:
    """Returns the number of parameters that have gradients."""
    if setup.method == "Full":
        return shape.parameters
    return adapter_parameters(shape, setup) + saved_parameters(shape, setup.modules_to_save)


def passed_adapter_parameters(shape: ModelShape, setup: Setup) -> int:
    """Returns the parameters of a LoRA adapter that a token passes."""
    adapted = shape.targeted(setup.target_modules)
    return sum(setup.rank * (m.rows + m.columns) * m.passed for m in adapted)


def _weights(shape: ModelShape, setup: Setup) -> float:
    """Returns the bytes of the frozen base model. Under QLoRA, the matrices of the blocks are in 4 bits. Under Full,
    only the weights outside of the language model are frozen. These are never sharded. Of sharded weights, a GPU has
    its shard and the gathered layers."""
    others = setup.number * shape.other_parameters
    gathered = gathered_bytes(shape, setup.method == "Full") if setup.shards > 1 else 0.0
    if setup.method == "Full":
        return others + gathered
    matrices = shape.linear_parameters * (FOUR_BIT[setup.double_quant] if setup.method == "QLoRA" else BF16)
    return others + matrices / setup.shards + setup.number * (shape.parameters - shape.linear_parameters) + gathered


def _trainable(shape: ModelShape, setup: Setup) -> float:
    """Returns the bytes of fp32 parameters, fp32 gradients, the moments of the optimizer, and the bf16 copies that
    autocast keeps for the backward pass. There are no copies if the computation is in fp32. An adapter is never
    sharded; sharded weights have no copies, because they are gathered in bf16."""
    if setup.method == "Full" and setup.shards > 1:
        return shape.parameters * (FP32 + FP32 + ADAM[setup.optimizer]) / setup.shards
    trained = trained_parameters(shape, setup)
    embedding = shape.hidden * shape.vocabulary * _trains_embedding(shape, setup)
    wider = embedding * (ADAM["AdamW"] - ADAM[setup.optimizer])
    return wider + trained * (FP32 + FP32 + ADAM[setup.optimizer] + BF16 * (setup.number == BF16))


def _trains_embedding(shape: ModelShape, setup: Setup) -> bool:
    """Returns whether the weights of the embedding are trained."""
    tables = saved_tables(shape, setup.modules_to_save)
    return setup.method == "Full" or any(shape.tied or not is_saved("lm_head", [name]) for name in tables)


def _trains_head(shape: ModelShape, setup: Setup) -> bool:
    """Returns whether the output head is trained: its weights (possibly tied to the embedding), an adapter or a
    bias."""
    named = is_saved("lm_head", setup.modules_to_save) or "lm_head" in setup.target_modules
    biased, tied = setup.biases and shape.head_bias, shape.tied and _trains_embedding(shape, setup)
    return setup.method == "Full" or named or biased or tied


def layer_activations(shape: ModelShape, setup: Setup, tokens: int, device: Device) -> float:
    """Returns the bytes that one layer keeps for its backward pass. Attention in a fused kernel keeps no tensor of size
    tokens x tokens (Dao et al. 2022). Capped scores have no fused kernel and keep such tensors in bf16 and fp32, and a
    mask."""
    full, heads = setup.method == "Full", shape.query + shape.key_value
    # Query, key, value and result in the type of the kernel, and the result again as input of the output projection.
    attention = (
        max(device.attention, setup.number) * 2 * heads + setup.number * shape.query + FP32 * heads * shape.normed_heads
    )
    # RMSNorm keeps its input in fp32, and the factor of its weight if that is trained. LayerNorm keeps its input.
    normed = FP32 * (1 + full) if shape.rms else setup.residual
    # The normed stream is the input of the projections. From an fp32 stream, autocast makes a copy for each of them.
    inputs = setup.number * (5 if full else 2)
    # Gated: usually gate, activated gate, up and their product. Otherwise: the activation's tensors, and its result.
    mlp = setup.number * (shape.gate_tensors if shape.gated else UNFUSED_ACTIVATIONS.get(shape.activation, 1) + 1)
    stream = (shape.norms * normed + inputs) * shape.hidden
    # For each expert of a token: the copy that it receives, and its result.
    routed = 2 * setup.number * shape.routed * shape.hidden
    each = attention + stream + mlp * shape.intermediate + routed + _adapters_per_token(shape, setup)
    return tokens * (each + tokens * (SCORE * shape.softcapped_heads + setup.number * shape.sink_heads))


def _adapters_per_token(shape: ModelShape, setup: Setup) -> float:
    """Returns the bytes for each token that the adapters of one layer keep: the inner vector of each adapter. With
    dropout also the dropped input and the mask. With DoRA (Liu et al. 2024) also the results of the base and of the
    adapter, which the magnitude multiplies."""
    if setup.method == "Full":
        return 0.0
    adapted = shape.targeted(setup.target_modules)
    dropped = (setup.number + 1) * sum(m.columns * m.passed for m in adapted) if setup.dropout else 0
    scaled = 2 * setup.number * sum(m.rows * m.passed for m in adapted) if setup.dora else 0
    return (setup.number * setup.rank * sum(m.passed for m in adapted) + dropped + scaled) / shape.layers


def _logits(shape: ModelShape, setup: Setup, load: Load, device: Device) -> float:
    """Returns the bytes of the logits, of their fp32 copy and of their log-softmax. The gradients reuse this memory. A
    head that is frozen with its bias processes one chunk of labels at a time, if nothing scales its result. Then the
    hidden states and their gradient remain (finetune_trainer.model.loss)."""
    each = BF16 * (setup.number == BF16) + FP32 + FP32
    logits = load.labels * shape.vocabulary
    if _trains_head(shape, setup) or not shape.bare_logits:
        return logits * each
    return min(logits, max(device.logits, shape.vocabulary)) * each + load.labels * shape.hidden * 2 * setup.number


def _backward_per_token(shape: ModelShape, setup: Setup, device: Device) -> float:
    """Returns the bytes for each token of the gradients in the backward pass of one layer: of the branches and the
    product of the MLP, or of query, key, value and result, and of the residual stream."""
    mlp = setup.number * (3 * shape.intermediate + 2 * shape.routed * shape.hidden)
    attention = max(device.attention, setup.number) * 2 * (shape.query + shape.key_value)
    return max(mlp, attention) + (setup.residual + FP32) * shape.hidden


def _buffers(shape: ModelShape, setup: Setup) -> float:
    """Returns the bytes of the largest temporary matrix. QLoRA unpacks a 4-bit matrix for each product. DoRA computes
    the norm of each updated matrix in fp32."""
    largest = max((m.rows * m.columns for m in shape.matrices), default=0)
    return largest * (setup.number * (setup.method == "QLoRA") + FP32 * setup.dora)


def _answering(shape: ModelShape, setup: Setup, tokens: int) -> float:
    """Returns the bytes for writing answers: keys and values of every layer, and the widest tensors of the prompt
    pass."""
    return tokens * setup.number * (2 * shape.key_value * shape.layers + 3 * shape.intermediate + 2 * shape.hidden)


def first_fit(
    shape: ModelShape, setups: Iterable[Setup], loads: Sequence[Load], available: float, device: Device = CUDA
) -> MemoryPlan | None:
    """Returns the first plan that fits into `available` bytes, or None. For each of `setups` in order, all `loads` are
    tried in order."""
    plans = (MemoryPlan(setup, load, predict(shape, setup, load, device)) for setup in setups for load in loads)
    return next((plan for plan in plans if plan.memory.total <= available), None)
