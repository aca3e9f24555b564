"""Tests the memory probe on the real model, and the training after an out-of-memory error."""

import time
from collections.abc import Iterator

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Figure
from finetune_api.reasons import FailureReason
from finetune_api.spec.training import Training
from finetune_trainer.model.parameters.trainable import trainable_parameters, use_gradient_checkpointing
from finetune_trainer.pod.failure import failure_of
from finetune_trainer.training.loop import accumulate_gradients
from finetune_trainer.training.memory_probe import StepLayout, find_plan


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields the probe's result and time, a step with the probe's plan, and a step after a failed allocation."""
    name = bench.sizes.main
    model, rows = bench.model(name, "LoRA"), bench.rows(name)
    started = time.perf_counter()
    resolved = bench.resolved(bench.sizes.micro_batches[0])
    plan = find_plan(model, rows, Training(global_batch_size=len(rows)), resolved, bench.accelerator)
    how = "with" if plan.gradient_checkpointing else "without"
    yield Figure(
        "probe", time.perf_counter() - started, "s", f"{plan.micro_batch_tokens:,} tokens {how} gradient checkpointing"
    )
    before = _loss(bench, plan)
    yield Figure("a step by its plan", before, "nats", "the step fits into the memory")
    if bench.device.type == "cuda":
        yield _run_out(bench)
    after = _loss(bench, plan)
    yield Figure("the same step once more", after, "nats", f"{before:.4g} before", abs(after - before) < 1e-3 * before)
    use_gradient_checkpointing(model, False)


def _loss(bench: Bench, plan: StepLayout) -> float:
    name = bench.sizes.main
    model = bench.model(name, "LoRA")
    loss = accumulate_gradients(model, bench.rows(name), plan.micro_batch_tokens, bench.accelerator)
    for parameter in trainable_parameters(model):
        parameter.grad = None
    return loss


def _run_out(bench: Bench) -> Figure:
    """Runs one micro-batch that fits on no GPU."""
    name, tokens = bench.sizes.main, bench.sizes.too_long
    model, rows = bench.model(name, "LoRA"), bench.rows(name, tokens // bench.sizes.document)
    use_gradient_checkpointing(model, False)
    reason: FailureReason | None = None
    try:
        accumulate_gradients(model, rows, tokens, bench.accelerator)
    except RuntimeError as error:
        reason = failure_of(error).reason
    # Only past the exception, whose frames held the tensors, is there anything to give back.
    bench.free()
    told = reason.value if reason else "no failure: the micro-batch fits"
    return Figure("too large a micro-batch", tokens, "tokens", told, reason is FailureReason.GPU_OUT_OF_MEMORY)
