"""Predicts the time and the cost of a run from its operations. docs/sizing.md describes how exact the prediction is."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from math import ceil

from finetune_trainer.sizing.memory import Setup, passed_adapter_parameters
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.traffic import Layout, gathering_seconds, summing_seconds

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
"""bf16 TFLOP/s of the tensor cores without sparsity, from NVIDIA's data sheets. The first matching name is used."""
UTILISATION = {"LoRA": 0.35, "QLoRA": 0.25, "Full": 0.4}
"""Share of the peak that training reaches. These are assumptions from published results for 7B and 8B models on A100
and H100. QLoRA unpacks every matrix twice. Full has fewer small operations for the same arithmetic."""
LAYER_LAUNCH = 2e-3
"""Seconds to start the kernels of one layer, forward and backward, for any number of tokens: about 250 operations of 8
microseconds each. This time limits small models."""
LAYER_DECODE = 1e-3
"""Seconds that one layer needs for one token of an answer, for any number of answers in the batch. Transformers'
generate writes 30 to 40 tokens per second with the 32 layers of a 7B model."""
START = 60.0
"""Seconds to start the pod, to import the libraries and to start the first kernels."""
LOADING = 500e6
"""Bytes of weights that are downloaded and loaded per second."""
ONE_GPU = Layout()


@dataclass(frozen=True)
class Work:
    """The amount of computation of a run on one GPU."""

    tokens: int
    """Tokens of all steps."""
    labels: int
    """Tokens of all steps that are trained on."""
    context: float
    """Length in tokens of the row that contains a token, averaged over tokens. Attention reads half of the row."""
    steps: int
    """Optimizer steps."""
    rows: int
    """Rows of a step."""
    micro_batches: int
    """Micro-batches of all steps."""
    answered: int
    """Test rows that are answered."""
    rounds: int
    """How often they are answered: by each model, and with each few-shot prompt."""
    prompt_tokens: int
    """Tokens of the longest prompt."""
    answer_tokens: int
    """Tokens of the longest answer."""
    answering: int
    """Tokens of prompts and answers in one generation batch."""
    loads: int
    """How often the base model is loaded."""


def divided(work: Work, gpus: int) -> Work:
    """Returns the most work that one of `gpus` GPUs has. They share the rows of each step and the
    test rows, and the others wait for it. The loading of the model is not divided here."""
    share = ceil(work.rows / gpus) / work.rows
    return replace(
        work,
        tokens=ceil(work.tokens * share),
        labels=ceil(work.labels * share),
        micro_batches=work.steps * ceil(work.micro_batches / max(1, work.steps) * share),
        answered=ceil(work.answered / gpus),
    )


def peak_flops(names: Iterable[str]) -> float | None:
    """Returns the bf16 FLOP/s of the GPU in `names`, for example h100-80gb or NVIDIA-H100-80GB-HBM3. Returns None for
    an unknown GPU and for a slice of a GPU (MIG)."""
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
    """Returns the floating-point operations of all steps.

    Forward: 2 for each weight and token, the two products of attention over the earlier tokens (Kaplan et al. 2020,
    section 2.1), and the output head for tokens that are trained on. Backward: the same again for the gradients of the
    activations, and once more for the gradients of the weights, which only Full needs. This is 6ND for Full and 4ND
    otherwise. Gradient checkpointing adds one forward pass. Of the experts, only those count that a token passes."""
    blocks = work.tokens * 2 * (shape.passed_parameters + shape.layers * shape.query * work.context)
    head = work.labels * 2 * shape.hidden * shape.vocabulary
    passes = (3 if setup.method == "Full" else 2) + setup.checkpointing
    adapters = 0 if setup.method == "Full" else 6 * passed_adapter_parameters(shape, setup) * work.tokens
    return passes * blocks + (3 if setup.method == "Full" else 2) * head + adapters


def training_seconds(shape: ModelShape, setup: Setup, work: Work, peak: float, layout: Layout = ONE_GPU) -> float:
    """Returns the seconds of all steps on a GPU of `layout` with a peak of `peak` FLOP/s. Sharded weights are gathered
    twice for each micro-batch, and meanwhile the GPU computes. Full also sends the gradients in fp32. Gradients of
    weights that are not sharded are added up once after each step, and meanwhile the GPU waits."""
    arithmetic = training_flops(shape, setup, work) / (peak * UTILISATION[setup.method])
    sent = 2 * gathering_seconds(shape, setup, layout) * (2 if setup.method == "Full" else 1)
    computing = max(arithmetic, work.micro_batches * max(shape.layers * LAYER_LAUNCH, sent))
    return computing + work.steps * summing_seconds(shape, setup, layout)


def answering_seconds(shape: ModelShape, setup: Setup, work: Work, layout: Layout = ONE_GPU) -> float:
    """Returns the seconds in which the models answer the test rows. Sharded weights are gathered for each token, once
    for all answers of a batch."""
    together = answers_together(work)
    token = max(shape.layers * LAYER_DECODE, gathering_seconds(shape, setup, layout))
    return work.rounds * ceil(work.answered / together) * work.answer_tokens * token


def answers_together(work: Work) -> int:
    """Returns the number of answers in a generation batch."""
    return max(1, work.answering // (work.prompt_tokens + work.answer_tokens))


def total_seconds(shape: ModelShape, setup: Setup, work: Work, peak: float, layout: Layout = ONE_GPU) -> float:
    """Returns the seconds from the start of the pod to the results: loading, answering the test rows, all steps."""
    loading = work.loads * 2 * shape.stored_parameters / LOADING
    answering = answering_seconds(shape, setup, work, layout)
    return START + loading + answering + training_seconds(shape, setup, work, peak, layout)


def cost(seconds: float, price_per_hour: str) -> str:
    """Returns the price of `seconds` as a decimal string with two decimal places."""
    exact = Decimal(price_per_hour) * Decimal(seconds) / 3600
    return str(exact.quantize(Decimal("0.01"), ROUND_HALF_UP))
