"""How much memory a run takes at its peak, predicted before a GPU is asked for. docs/sizing.md derives every term.

All sizes are bytes. What the loop keeps is counted tensor by tensor; only a `Device`'s numbers are measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_trainer.sizing.model_shape import ModelShape

BF16, FP32 = 2, 4
FOUR_BIT = {True: 0.5 + 1 / 64 + FP32 / (64 * 256), False: 0.5 + FP32 / 64}
"""Bytes of a weight in 4 bits, with double quantization (Dettmers et al. 2023, section 3) and without: half a byte and,
for every 64 weights, one byte of scale and 4 more for every 256 scales, 4.127 bits; or 4 bytes of scale, 4.5 bits."""
ADAM = {"AdamW": 2 * FP32, "PagedAdamW8bit": 2 * (1 + FP32 / 256)}
"""Bytes of optimizer state for each trained parameter: two moments, in fp32, or in 8 bits with an fp32 scale for every
256 (Dettmers et al. 2022). Those of an embedding are in fp32 always (finetune_trainer.training.optimizer)."""
UNFUSED_ACTIVATIONS = {"gelu_new": 4, "gelu_fast": 4, "quick_gelu": 2}
"""Tensors of the MLP's width that activation functions keep which Transformers writes out in several operations; all
others keep their input."""
SCORE = 8
"""Bytes kept of each attention score where scores are capped: before and after the cap, and of the softmax."""
HEADROOM = 1.25
"""More than predicted, of all but the weights, for what must not cost a job its memory."""
GENERATION_FACTOR = 8
"""Tokens held while answering, as a multiple of a micro-batch of training: without gradients only the keys and values
of each layer are kept."""

TrainedMethod = Literal["LoRA", "QLoRA", "Full"]
Optimizer = Literal["AdamW", "PagedAdamW8bit"]


@dataclass(frozen=True)
class Load:
    """The largest micro-batch there is."""

    tokens: int
    labels: int
    """Of them, those that are learned: logits are computed for these only."""
    answering: int = 0
    """Tokens of prompts and answers that are held at a time while held-out rows are answered; 0 where none are."""


@dataclass(frozen=True)
class Setup:
    """What of the method decides memory."""

    method: TrainedMethod = "LoRA"
    optimizer: Optimizer = "AdamW"
    checkpointing: bool = False
    rank: int = 16
    dropout: bool = False
    target_modules: tuple[str, ...] = ("all-linear",)
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    biases: bool = False
    """Whether all of the base model's biases are trained too."""
    double_quant: bool = True
    """Whether QLoRA quantizes the scales of its weights too."""
    float32: bool = False
    """Whether QLoRA computes in fp32."""

    @property
    def number(self) -> int:
        """Bytes of each number that is computed with, and of the base's where it is not in 4 bits."""
        return FP32 if self.method == "QLoRA" and self.float32 else BF16

    @property
    def residual(self) -> int:
        """Bytes of each number of the residual stream: of the embeddings' own."""
        return FP32 if self.method == "Full" else self.number


@dataclass(frozen=True)
class Device:
    """What only measuring tells of a kind of device."""

    runtime: int
    """Taken before the first tensor: the CUDA context and the libraries' workspaces, or the process itself."""
    slack: float
    """Held by the allocator and lost between tensors, as a share of those that come and go: activations and buffers."""
    attention: int
    """Bytes of each number attention keeps."""
    logits: int
    """Logits of a frozen output head that are held at a time (finetune_trainer.model.loss)."""


CUDA = Device(runtime=1024**3, slack=0.1, attention=BF16, logits=2**26)
"""A context with PyTorch's kernels takes about 0.5 GiB on Ampere and Hopper, cuBLAS 32 MiB a handle and stream on
Hopper, the rest is the driver's and NCCL's. Not measured by us yet: benchmarks/gpu does."""
CPU = Device(runtime=950 * 1024**2, slack=0.1, attention=FP32, logits=2**23)
"""836 MiB are the process with PyTorch, Transformers, PEFT and bitsandbytes imported, the rest is what oneDNN and the
threads hold once it computes; measured with torch 2.15 on x86-64, see docs/benchmarks.md. Attention runs in fp32 there,
since the bf16 kernel's backward takes three times as long."""


@dataclass(frozen=True)
class Memory:
    """Predicted memory of a run at its peak, by what holds it, in bytes."""

    weights: int
    """The base model's, as it lies there all the time."""
    trainable: int
    """Trained parameters with their gradients and the optimizer's state."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    working: int
    """Logits and their gradients, or the buffers of one layer, or of the optimizer: whichever is most."""
    overhead: int
    """The device's own: context, libraries, what the allocator holds."""

    @property
    def total(self) -> int:
        """Everything."""
        return self.weights + self.trainable + self.activations + self.working + self.overhead


@dataclass(frozen=True)
class MemoryPlan:
    """A way to train, and what it takes."""

    setup: Setup
    load: Load
    memory: Memory


def predict(shape: ModelShape, setup: Setup, load: Load, device: Device = CUDA) -> Memory:
    """Memory at the peak of training on `load`, and of answering held-out rows as it says."""
    weights, trainable = _weights(shape, setup), _trainable(shape, setup)
    layer = layer_activations(shape, setup, load.tokens, device)
    # With checkpointing only each layer's input is kept, and one layer at a time is computed again.
    inputs = load.tokens * shape.layers * shape.hidden * setup.residual
    activations = inputs + layer if setup.checkpointing else shape.layers * layer
    working = max(
        _logits(shape, setup, load, device),
        load.tokens * _backward_per_token(shape, setup, device) + _buffers(shape, setup),
        # Answering keeps no activations: what it needs beyond them is to be found elsewhere.
        _answering(shape, setup, load.answering) - activations,
    )
    return Memory(
        weights=round(weights),
        trainable=round(trainable),
        activations=round(activations),
        working=round(working),
        overhead=round(device.runtime + device.slack * (activations + working)),
    )


def base_memory(shape: ModelShape, tokens: int, device: Device = CUDA) -> int:
    """Memory a device must have to measure the base model in bf16 on held-out rows, with micro-batches of `tokens`:
    nothing is kept for a backward pass, so beside the weights there is one layer, or the logits, or the answers being
    written, whichever is most; of this and the overhead a quarter more, since no job shall run out of memory over what
    it is compared with."""
    setup = Setup()
    working = max(
        layer_activations(shape, setup, tokens, device),
        _logits(shape, setup, Load(tokens, tokens), device),
        _answering(shape, setup, GENERATION_FACTOR * tokens),
    )
    return round(BF16 * shape.parameters + HEADROOM * (device.runtime + (1 + device.slack) * working))


def adapter_parameters(shape: ModelShape, setup: Setup) -> int:
    """Parameters of a LoRA adapter: rank times inputs plus outputs of each matrix (Hu et al. 2021, section 4.1)."""
    adapted = shape.targeted(setup.target_modules)
    return sum(setup.rank * (m.rows + m.columns) * m.count for m in adapted)


def _weights(shape: ModelShape, setup: Setup) -> float:
    """The frozen base in what is computed with, its blocks' matrices in 4 bits under QLoRA. Under Full it is what is
    trained."""
    if setup.method == "Full":
        return 0.0
    matrices = shape.linear_parameters * (FOUR_BIT[setup.double_quant] if setup.method == "QLoRA" else BF16)
    return matrices + setup.number * (shape.parameters - shape.linear_parameters)


def _trainable(shape: ModelShape, setup: Setup) -> float:
    """fp32 parameters, fp32 gradients, the optimizer's moments, and the bf16 copies autocast keeps for the backward
    pass, where there is something to cast."""
    trained = shape.parameters if setup.method == "Full" else adapter_parameters(shape, setup) + _saved(shape, setup)
    embedding = shape.hidden * shape.vocabulary * _trains_embedding(shape, setup)
    wider = embedding * (ADAM["AdamW"] - ADAM[setup.optimizer])
    return wider + trained * (FP32 + FP32 + ADAM[setup.optimizer] + BF16 * (setup.number == BF16))


def _saved(shape: ModelShape, setup: Setup) -> int:
    """Parameters of the modules that are trained whole beside the adapter, as copies of the base's: those of the blocks
    by their name, all others as the embedding or the head, which are of one size."""
    blocks = [m for name in setup.modules_to_save for m in shape.targeted([name])]
    others = max(0, len(setup.modules_to_save) - len({m.name for m in blocks}))
    tables = min(others, 1) if shape.tied else others
    return sum(m.parameters for m in blocks) + tables * shape.hidden * shape.vocabulary


def _trains_embedding(shape: ModelShape, setup: Setup) -> bool:
    """Whether the embedding's own weights are trained."""
    others = [name for name in setup.modules_to_save if not shape.targeted([name])]
    return setup.method == "Full" or any(shape.tied or name != "lm_head" for name in others)


def _trains_head(shape: ModelShape, setup: Setup) -> bool:
    """Whether anything of the output head is trained: its weights, which may be the embedding's, an adapter, a bias."""
    named = "lm_head" in (*setup.modules_to_save, *setup.target_modules)
    biased, tied = setup.biases and shape.head_bias, shape.tied and _trains_embedding(shape, setup)
    return setup.method == "Full" or named or biased or tied


def layer_activations(shape: ModelShape, setup: Setup, tokens: int, device: Device) -> float:
    """Kept in one layer for its backward pass. Attention in a fused kernel keeps nothing of the size of tokens times
    tokens (Dao et al. 2022); capped scores, which have none, keep that in bf16 and fp32 and a mask."""
    full, heads = setup.method == "Full", shape.query + shape.key_value
    # Query, key, value and result as the kernel has them, and the result again as the output projection's input.
    attention = (
        max(device.attention, setup.number) * 2 * heads + setup.number * shape.query + FP32 * heads * shape.normed_heads
    )
    # RMSNorm's input, in fp32, and where its weight is trained what that multiplies; LayerNorm's input.
    normed = FP32 * (1 + full) if shape.rms else setup.residual
    # The normed stream as the projections' input; from an fp32 stream autocast makes a copy for each.
    inputs = setup.number * (5 if full else 2)
    # Gate, activated gate, up and their product; or what the activation keeps, and its result.
    mlp = setup.number * (4 if shape.gated else UNFUSED_ACTIVATIONS.get(shape.activation, 1) + 1)
    stream = (shape.norms * normed + inputs) * shape.hidden
    each = attention + stream + mlp * shape.intermediate + _adapters_per_token(shape, setup)
    return tokens * (each + tokens * SCORE * shape.softcapped_heads)


def _adapters_per_token(shape: ModelShape, setup: Setup) -> float:
    """Kept by the adapters of one layer: each one's inner vector; under dropout its own input and the mask; under DoRA
    (Liu et al. 2024) its base's result and its own, which the magnitude multiplies."""
    if setup.method == "Full":
        return 0.0
    adapted = shape.targeted(setup.target_modules)
    dropped = (setup.number + 1) * sum(m.columns * m.count for m in adapted) if setup.dropout else 0
    scaled = 2 * setup.number * sum(m.rows * m.count for m in adapted) if setup.dora else 0
    return (setup.number * setup.rank * sum(m.count for m in adapted) + dropped + scaled) / shape.layers


def _logits(shape: ModelShape, setup: Setup, load: Load, device: Device) -> float:
    """Logits as computed, in fp32, and their log-softmax: the largest set alive at once, and again as gradients on the
    way back. A head that is frozen with its bias is applied to a chunk of labels at a time, if nothing scales what it
    returns; then the hidden states and their gradient are what remains (finetune_trainer.model.loss)."""
    each = BF16 * (setup.number == BF16) + FP32 + FP32
    logits = load.labels * shape.vocabulary
    if _trains_head(shape, setup) or not shape.bare_logits:
        return logits * each
    return min(logits, max(device.logits, shape.vocabulary)) * each + load.labels * shape.hidden * 2 * setup.number


def _backward_per_token(shape: ModelShape, setup: Setup, device: Device) -> float:
    """Gradients alive inside one layer's backward pass: of the MLP's branches and product, or of query, key, value and
    result, beside that of the residual stream."""
    mlp = setup.number * 3 * shape.intermediate
    attention = max(device.attention, setup.number) * 2 * (shape.query + shape.key_value)
    return max(mlp, attention) + (setup.residual + FP32) * shape.hidden


def _buffers(shape: ModelShape, setup: Setup) -> float:
    """A 4-bit matrix is unpacked for each product, and DoRA takes the norm of each updated matrix in fp32: the
    largest one counts."""
    largest = max((m.rows * m.columns for m in shape.matrices), default=0)
    return largest * (setup.number * (setup.method == "QLoRA") + FP32 * setup.dora)


def _answering(shape: ModelShape, setup: Setup, tokens: int) -> float:
    """Keys and values of every layer while answers are written, and the widest tensors of the prompts' one pass."""
    return tokens * setup.number * (2 * shape.key_value * shape.layers + 3 * shape.intermediate + 2 * shape.hidden)


def first_fit(
    shape: ModelShape, setups: Iterable[Setup], loads: Sequence[Load], available: float, device: Device = CUDA
) -> MemoryPlan | None:
    """The first of `setups`, in order of preference, that fits into `available` bytes with one of `loads`, of which the
    first that fits is taken; None where none does."""
    plans = (MemoryPlan(setup, load, predict(shape, setup, load, device)) for setup in setups for load in loads)
    return next((plan for plan in plans if plan.memory.total <= available), None)
