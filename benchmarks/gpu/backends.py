"""Names the kernels that PyTorch chooses for attention and for experts, and checks the product of the experts."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import CPU, GROUPS, ROUNDING, attend, check, distance
from benchmarks.gpu.record import Figure
from finetune_trainer.model.layers.attention import prefer_cudnn
from finetune_trainer.model.layers.experts import grouped

EXPERTS, INPUTS, OUTPUTS = 8, 64, 96
ENDS = (40, 41, 41, 130, 200, 201, 300, 301)
"""Ends of the rows of each expert. One expert has no row, and some have a number of rows that is no multiple of 8."""


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields the operations by which PyTorch computes attention and experts. On a GPU, attention without a switch has
    to be FlashAttention."""

    def attention() -> object:
        return attend(bench.device, torch.bfloat16, GROUPS, None, masked=False)

    names = operations(attention, "attention")
    flash = any("_flash_attention_backward" in name for name in names) and not any("cudnn" in name for name in names)
    yield named("attention of packed rows", names, flash if bench.device.type == "cuda" else None)
    with prefer_cudnn():
        yield named("attention of packed rows, cudnn_attention=True", operations(attention, "attention"))
    yield named("experts", operations(lambda: _experts(bench.device, torch.bfloat16), "mm"))
    found, expected = _experts(bench.device, torch.bfloat16), _experts(CPU, torch.float32)
    for name, one, other in zip(("result", "gradient of rows", "gradient of weights"), found, expected, strict=True):
        yield check(f"experts, {name}", distance(one, other), ROUNDING)


def operations(work: Callable[[], object], part: str) -> list[str]:
    """Returns the names of the operations with `part` in their names that `work` has run, in alphabetical order."""
    with profile(activities=[ProfilerActivity.CPU]) as run:
        work()
    return sorted({event.key for event in run.key_averages() if part in event.key})


def named(what: str, names: list[str], right: bool | None = None) -> Figure:
    """Returns the figure with the names of operations."""
    return Figure(what, len(names), "operations", ", ".join(names), right, {"operations": names})


def _experts(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the products of rows with the matrices of their experts, and the gradients of both."""
    draw = torch.Generator().manual_seed(0)
    rows, weights, outer = (
        torch.randn(*shape, generator=draw).bfloat16().to(device, dtype)
        for shape in ((ENDS[-1], INPUTS), (EXPERTS, INPUTS, OUTPUTS), (ENDS[-1], OUTPUTS))
    )
    result = grouped(rows.requires_grad_(), weights.requires_grad_(), torch.tensor(ENDS, device=device))
    of_rows, of_weights = torch.autograd.grad(result, (rows, weights), outer)
    return result.detach(), of_rows, of_weights
