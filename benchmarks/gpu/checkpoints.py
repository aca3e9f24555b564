"""Checks that a training goes on from its state as if it had not stopped, and measures the copy for a checkpoint."""

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import SAME, check, distance, rows, small
from benchmarks.gpu.record import Figure
from finetune_api.spec import training as recipe
from finetune_trainer.checkpoints.buffers import Buffers
from finetune_trainer.checkpoints.training_state import live_state, misfit, restore
from finetune_trainer.model.parameters.trainable import trainable_parameters
from finetune_trainer.training.loop import accumulate_gradients
from finetune_trainer.training.optimizer import make_optimizer

RATE = 1e-3


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields the figures of each optimizer and of the copy."""
    yield from _resumed(bench, recipe.Optimizer.ADAMW)
    if importlib.util.find_spec("bitsandbytes") is not None:
        yield from _resumed(bench, recipe.Optimizer.PAGED_ADAMW_8BIT)
    else:
        yield Figure("resumed with PagedAdamW8bit", 0, "", "skipped: bitsandbytes is not installed")
    yield _copied(bench)


def _resumed(bench: Bench, kind: recipe.Optimizer) -> Iterator[Figure]:
    """Takes two steps, keeps the state as a checkpoint does, and compares a third step with that of a new process."""
    training = recipe.Training(optimizer=kind)
    model = small(bench.device, torch.bfloat16)
    optimizer = make_optimizer(model, training)
    for _ in range(2):
        _step(bench, model, optimizer)
    other = small(bench.device, torch.bfloat16)
    resumed = make_optimizer(other, training)
    with TemporaryDirectory() as folder:
        file, (tensors, numbers) = Path(folder, "state.safetensors"), live_state(model, optimizer)
        buffers = Buffers()
        save_file(dict(buffers.copy(tensors)), file)
        buffers.release()
        why = misfit(other, resumed, file, numbers)
        yield Figure(f"state of {type(optimizer).__name__}", len(tensors), "tensors", why or "it fits", why is None)
        resumed = make_optimizer(other, training)  # `misfit` may have given the other one a state
        restore(other, resumed, file, numbers)
    for trained, its in ((model, optimizer), (other, resumed)):
        _step(bench, trained, its)
    ones, others = (
        torch.cat([weight.detach().flatten() for weight in trainable_parameters(m)]) for m in (model, other)
    )
    yield check(f"resumed with {type(optimizer).__name__}, weights", distance(ones, others), SAME)


def _step(bench: Bench, model: nn.Module, optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] = RATE
    accumulate_gradients(model.train(), rows(), 2048, bench.accelerator)
    optimizer.step()
    optimizer.zero_grad()


def _copied(bench: Bench) -> Figure:
    """Measures the second copy of the state of an adapter: the first one allocates the memory."""
    size = bench.sizes.copied
    tensors = {name: torch.randn(size // 8, device=bench.device) for name in ("a", "b")}
    buffers = Buffers()
    buffers.copy(tensors)
    bench.synchronize()
    started = time.perf_counter()
    copies = buffers.copy(tensors)
    seconds = time.perf_counter() - started
    right = all(torch.equal(copies[name], tensor.cpu()) for name, tensor in tensors.items())
    pinned = buffers.is_pinned
    right = right and pinned is (bench.device.type == "cuda")
    memory = "pinned memory" if pinned else "memory that is not pinned"
    buffers.release()
    return Figure(f"copy of {size / 2**20:,.0f} MiB", size / seconds / 1e9, "GB/s", f"into {memory}", right)
