"""Checks NCCL and FSDP2 with a single rank: one machine with one GPU can run them, but shows nothing of their speed."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import CPU, SAME, check, distance, rows, small
from benchmarks.gpu.record import Figure
from finetune_api.spec.method import Method, MethodType
from finetune_trainer.model.parameters.sharding import shard
from finetune_trainer.model.parameters.trainable import make_trainable, trainable_parameters
from finetune_trainer.ranks.environment import SURVIVES_GPU_ERRORS
from finetune_trainer.ranks.group import between_gpus, finish, leave
from finetune_trainer.ranks.shards import is_sharded, mesh, whole
from finetune_trainer.training.loop import accumulate_gradients


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields the figures of a sum and of a step with sharded weights."""
    os.environ.update(SURVIVES_GPU_ERRORS)  # as the launcher of the ranks does
    with TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{Path(folder, 'store')}", rank=0, world_size=1)
        try:
            yield _summed(bench)
            yield from _sharded(bench)
        finally:
            leave()
            between_gpus.cache_clear()
            mesh.cache_clear()


def _summed(bench: Bench) -> Figure:
    cuda = bench.device.type == "cuda"
    before = torch.cuda.mem_get_info()[0] if cuda else 0
    numbers = torch.arange(1000.0, device=bench.device)
    group = between_gpus() if cuda else None
    finish(lambda: dist.all_reduce(numbers, dist.ReduceOp.SUM, group, async_op=True))
    bench.synchronize()
    used = before - torch.cuda.mem_get_info()[0] if cuda else 0
    right = torch.equal(numbers.cpu(), torch.arange(1000.0))
    return Figure("memory of NCCL with one GPU", used / 2**20, "MiB", "after one sum", right)


def _sharded(bench: Bench) -> Iterator[Figure]:
    """Compares the gradient of a step with sharded weights with that of whole weights, for LoRA and for Full."""
    for what, method in (("LoRA", MethodType.LORA), ("Full", MethodType.FULL)):
        # `shard` expects the model on the CPU.
        sharded, plain = (_model(device, method) for device in (CPU, bench.device))
        shard(sharded, bench.device, bf16=False)
        assert is_sharded(sharded)
        gradients = [_gradient(bench, model) for model in (sharded, plain)]
        yield check(f"{what} with FSDP2, gradient from whole weights", distance(*gradients), SAME)


def _model(device: torch.device, method: MethodType) -> Any:
    model = small(device, torch.float32)
    return model if method is MethodType.LORA else make_trainable(model.unload(), Method(), method, seed=0)


def _gradient(bench: Bench, model: Any) -> Tensor:
    accumulate_gradients(model.train(), rows(), 2048, bench.accelerator)
    found = [parameter.grad for parameter in trainable_parameters(model)]
    return torch.cat([whole(part).flatten().float().cpu() for part in found if part is not None])
