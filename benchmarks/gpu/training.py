"""The trainer's own steps: speed beside what the GPU multiplies, memory beside what sizing predicted."""

import importlib.util
from collections.abc import Iterator

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Figure
from benchmarks.gpu.switches import all_on
from finetune_api.spec.training import Optimizer, Training
from finetune_trainer.sizing.memory import Setup
from finetune_trainer.training.optimizer import make_optimizer

WANTED = {"LoRA": 10_000, "LoRA, all switches on": 12_500, "QLoRA": 9_000}
"""Tokens a second of the 8B model on an H100 or H200. NVIDIA's NeMo AutoModel publishes 12,473 for LoRA on one H100."""


def lora(bench: Bench) -> Iterator[Figure]:
    """LoRA of the main model, nothing computed again, at two sizes of a micro-batch."""
    name = bench.sizes.main
    for tokens in bench.sizes.micro_batches:
        speed = bench.steps(bench.model(name, "LoRA"), bench.rows(name), tokens)
        what = f"LoRA, {tokens:,} tokens a micro-batch"
        yield from bench.figures(what, name, Setup(), speed, tokens, WANTED["LoRA"])


def qlora(bench: Bench) -> Iterator[Figure]:
    """QLoRA of the main model, as it is and with everything switched on."""
    name, tokens = bench.sizes.main, bench.sizes.micro_batches[-1]
    model, setup = bench.model(name, "QLoRA"), Setup("QLoRA")
    speed = bench.steps(model, bench.rows(name), tokens)
    yield from bench.figures("QLoRA", name, setup, speed, tokens, WANTED["QLoRA"])
    if speedups := all_on():
        speed = bench.steps(model, bench.rows(name), tokens, speedups=speedups)
        yield from bench.figures("QLoRA, all switches on", name, setup, speed, tokens, WANTED["QLoRA"])


def long(bench: Bench) -> Iterator[Figure]:
    """LoRA of a small model in long micro-batches."""
    name, tokens = bench.sizes.small, bench.sizes.long
    rows = bench.rows(name, 2 * tokens // bench.sizes.document)
    speed = bench.steps(bench.model(name, "LoRA"), rows, tokens)
    yield from bench.figures(f"{name} LoRA, {tokens:,} tokens a micro-batch", name, Setup(), speed, tokens)


def full(bench: Bench) -> Iterator[Figure]:
    """Every weight of a model of a billion. Moments are in 8 bits where bitsandbytes is there, and never paged: more
    managed memory than a GPU has can hang it."""
    name, tokens = bench.sizes.full, bench.sizes.micro_batches[0]
    model = bench.model(name, "Full")
    eight_bit = importlib.util.find_spec("bitsandbytes") is not None
    kind = Optimizer.PAGED_ADAMW_8BIT if eight_bit else Optimizer.ADAMW
    optimizer = make_optimizer(model, Training(optimizer=kind), paged=False)
    speed = bench.steps(model, bench.rows(name), tokens, optimizer=optimizer)
    how = "8-bit moments" if eight_bit else "AdamW"
    yield from bench.figures(f"{name} Full, {how}", name, Setup("Full", kind.value), speed, tokens)
