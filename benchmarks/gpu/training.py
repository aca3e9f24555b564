"""Measures the trainer's steps: speed relative to the matmul, and memory relative to the prediction of sizing."""

import importlib.util
from collections.abc import Iterator

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Figure
from benchmarks.gpu.switches import all_on
from finetune_api.spec.training import Optimizer, Training
from finetune_trainer.sizing.memory import Setup
from finetune_trainer.training.optimizer import make_optimizer

WANTED = {"LoRA": 10_000, "LoRA, all switches on": 12_500, "QLoRA": 9_000}
"""Goals in tokens per second for the 8B model on an H100 or H200.

NVIDIA's NeMo AutoModel publishes 12,473 for LoRA on one H100."""


def lora(bench: Bench) -> Iterator[Figure]:
    """Measures LoRA of the main model without gradient checkpointing, with two micro-batch sizes."""
    name = bench.sizes.main
    for tokens in bench.sizes.micro_batches:
        speed = bench.steps(bench.model(name, "LoRA"), bench.rows(name), tokens)
        what = f"LoRA, {tokens:,} tokens a micro-batch"
        yield from bench.figures(what, name, Setup(), speed, tokens, WANTED["LoRA"])


def qlora(bench: Bench) -> Iterator[Figure]:
    """Measures QLoRA of the main model, with the default switches and with all switches on."""
    name, tokens = bench.sizes.main, bench.sizes.micro_batches[-1]
    model, setup = bench.model(name, "QLoRA"), Setup("QLoRA")
    speed = bench.steps(model, bench.rows(name), tokens)
    yield from bench.figures("QLoRA", name, setup, speed, tokens, WANTED["QLoRA"])
    if speedups := all_on():
        speed = bench.steps(model, bench.rows(name), tokens, speedups=speedups)
        yield from bench.figures("QLoRA, all switches on", name, setup, speed, tokens, WANTED["QLoRA"])


def long(bench: Bench) -> Iterator[Figure]:
    """Measures LoRA of a small model with long micro-batches."""
    name, tokens = bench.sizes.small, bench.sizes.long
    rows = bench.rows(name, 2 * tokens // bench.sizes.document)
    speed = bench.steps(bench.model(name, "LoRA"), rows, tokens)
    yield from bench.figures(f"{name} LoRA, {tokens:,} tokens a micro-batch", name, Setup(), speed, tokens)


def full(bench: Bench) -> Iterator[Figure]:
    """Measures full fine-tuning of a model with a billion parameters.

    Moments have 8 bits if bitsandbytes is installed. They are never paged, because too much managed memory can hang
    the GPU."""
    name, tokens = bench.sizes.full, bench.sizes.micro_batches[0]
    model = bench.model(name, "Full")
    eight_bit = importlib.util.find_spec("bitsandbytes") is not None
    kind = Optimizer.PAGED_ADAMW_8BIT if eight_bit else Optimizer.ADAMW
    optimizer = make_optimizer(model, Training(optimizer=kind), paged=False)
    speed = bench.steps(model, bench.rows(name), tokens, optimizer=optimizer)
    how = "8-bit moments" if eight_bit else "AdamW"
    yield from bench.figures(f"{name} Full, {how}", name, Setup("Full", kind.value), speed, tokens)
