"""How long a run takes and what that costs, predicted from its arithmetic. docs/sizing.md says how far off that is."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from finetune_trainer.sizing.memory import Setup, adapter_parameters
from finetune_trainer.sizing.model_shape import ModelShape

PEAK = {
    "b200": 2250,
    "h200": 989,
    "gh200": 989,
    "h100-pcie": 756,
    "h100-nvl": 835,
    "h100": 989,
    "h800": 989,
    "a100": 312,
    "a800": 312,
    "l40s": 362,
    "l40": 181,
    "rtx-6000-ada": 364,
    "a40": 150,
    "a30": 165,
    "rtx-a6000": 155,
    "a10g": 70,
    "a10": 125,
    "l4": 121,
    "rtx-4090": 165,
    "rtx-3090": 71,
}
"""bf16 TFLOP/s of the tensor cores without sparsity, from NVIDIA's data sheets. The first name found counts."""
UTILISATION = {"LoRA": 0.35, "QLoRA": 0.25, "Full": 0.4}
"""Share of that peak which training reaches: assumed, from what others publish for 7B and 8B models on A100 and H100.
QLoRA unpacks every matrix twice; Full has fewer small operations for the same arithmetic."""
LAYER_LAUNCH = 2e-3
"""Seconds that starting one layer's kernels takes, forward and backward, however few tokens there are: some 250
operations of 8 microseconds each. Small models are bound by it."""
LAYER_DECODE = 1e-3
"""Seconds one layer takes for one token of an answer, however many are written side by side: Transformers' generate
writes 30 to 40 tokens a second with the 32 layers of a 7B model."""
START = 60.0
"""Seconds for the pod's image, its imports and the first kernels."""
LOADING = 500e6
"""Bytes of weights downloaded and loaded in a second."""


@dataclass(frozen=True)
class Work:
    """What there is to compute."""

    tokens: int
    """Of all steps."""
    labels: int
    """Of these, those that are learned."""
    context: float
    """Tokens of the row a token stands in, on average over tokens: attention looks at half of them."""
    micro_batches: int
    """Passes through the model."""
    answers: int
    """Answers written to held-out rows, by all models together."""
    prompt_tokens: int
    """Of the longest prompt."""
    answer_tokens: int
    """Of the longest answer."""
    answering: int
    """Tokens of prompts and answers at a time."""
    loads: int
    """Times the base model is loaded."""


def peak_flops(names: Iterable[str]) -> float | None:
    """bf16 FLOP/s of the GPU that one of `names` tells, such as h100-80gb or NVIDIA-H100-80GB-HBM3; None for one not
    known and for a slice of one (MIG)."""
    words = [name.lower().replace("_", "-") for name in names]
    if any("mig" in word for word in words):
        return None
    known = (PEAK[gpu] for gpu in PEAK for word in words if _holds(word, gpu))
    found = next(known, None)
    return found * 1e12 if found else None


def _holds(word: str, gpu: str) -> bool:
    parts, wanted = word.split("-"), gpu.split("-")
    return set(wanted) <= set(parts)


def training_flops(shape: ModelShape, setup: Setup, work: Work) -> float:
    """Arithmetic of all steps.

    Forward: 2 for each weight and token, attention's two products over the tokens before (Kaplan et al. 2020, section
    2.1), the output head where something is learned. Backward: as much again for the gradients of what flows through,
    and again for those of the weights, which only Full needs: 6ND and 4ND. Checkpointing goes forward twice."""
    blocks = work.tokens * 2 * (shape.linear_parameters + shape.layers * shape.query * work.context)
    head = work.labels * 2 * shape.hidden * shape.vocabulary
    passes = (3 if setup.method == "Full" else 2) + setup.checkpointing
    adapters = 0 if setup.method == "Full" else 6 * adapter_parameters(shape, setup) * work.tokens
    return passes * blocks + (3 if setup.method == "Full" else 2) * head + adapters


def training_seconds(shape: ModelShape, setup: Setup, work: Work, peak: float) -> float:
    """Seconds of all steps on a GPU of `peak` FLOP/s."""
    arithmetic = training_flops(shape, setup, work) / (peak * UTILISATION[setup.method])
    return max(arithmetic, work.micro_batches * shape.layers * LAYER_LAUNCH)


def total_seconds(shape: ModelShape, setup: Setup, work: Work, peak: float) -> float:
    """Seconds from the pod's start to the results: loading, all models on the held-out rows, all steps."""
    together = max(1, work.answering // (work.prompt_tokens + work.answer_tokens))
    answering = -(-work.answers // together) * work.answer_tokens * shape.layers * LAYER_DECODE
    return START + work.loads * 2 * shape.parameters / LOADING + answering + training_seconds(shape, setup, work, peak)


def cost(seconds: float, price_per_hour: str) -> str:
    """Price of `seconds` as a decimal string, to the hundredth."""
    exact = Decimal(price_per_hour) * Decimal(seconds) / 3600
    return str(exact.quantize(Decimal("0.01"), ROUND_HALF_UP))
