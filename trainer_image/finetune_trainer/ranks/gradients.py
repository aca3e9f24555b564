"""Adds the gradients of all ranks, once at the end of a step.

It does not use DistributedDataParallel, for three reasons. DistributedDataParallel divides by the number of ranks,
while the loss here is divided by the labels of the whole step. It expects the same number of backward passes on every
rank, while a rank may have no rows in a small step. And it overlaps the sending with the last backward pass only, which
saves little where a step has many: the gradients of an adapter are a few megabytes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from finetune_trainer.pod.rank import place
from finetune_trainer.ranks.group import sum_over_ranks
from finetune_trainer.ranks.shards import is_shard, own_shard

BUCKET = 2**23
"""Most numbers that are sent at a time, 32 MiB in fp32. A longer gradient is sent alone and needs no copy."""


def connect(device: torch.device) -> None:
    """Makes the connections over which the ranks send their gradients, if they are not made yet. Raises what
    `sum_over_ranks` raises.

    NCCL takes memory of the GPU for them, so the memory probe has to come after. NCCL sends short and long messages in
    different ways, and prepares each at its first use."""
    if place().ranks > 1:
        for numbers in (1, BUCKET):
            sum_over_ranks(torch.zeros(numbers, device=device))


def without_gradient(parameters: Sequence[nn.Parameter]) -> frozenset[int]:
    """Returns the indices of the parameters that have no gradient on this rank."""
    return frozenset(index for index, parameter in enumerate(parameters) if parameter.grad is None)


def sum_gradients(parameters: Sequence[nn.Parameter], unused: frozenset[int]) -> None:
    """Replaces every gradient by its sum over all ranks, which is then the same on every rank, bit by bit.

    `unused`: indices of the parameters that have a gradient on no rank. As with one process they stay without one, so
    that the optimizer leaves them alone. A rank whose rows gave a parameter no gradient adds zeros. The backward
    pass has added up the gradients of sharded parameters."""
    if place().ranks == 1:
        return
    gradients = []
    for index, parameter in enumerate(parameters):
        if index in unused or is_shard(parameter):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        _sum(bucket)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields the gradients in order, as groups of at most BUCKET numbers. A group has one gradient or more."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(each.numel() for each in bucket) + gradient.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _sum(bucket: list[Tensor]) -> None:
    if len(bucket) == 1 and bucket[0].is_contiguous():
        sum_over_ranks(bucket[0])
        return
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    sum_over_ranks(flat)
    start = 0
    for gradient in bucket:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def clip_shards(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Scales the gradients down so that their norm over all parameters and ranks is at most `most`. Returns the norm
    before. It does what torch.nn.utils.clip_grad_norm_ does, for parameters that are all sharded. All ranks have to
    call it."""
    gradients = [own_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
    squares = torch.zeros(1, dtype=torch.float64, device=gradients[0].device)
    for gradient in gradients:
        squares += gradient.float().norm().double() ** 2
    sum_over_ranks(squares)
    norm = float(squares.sqrt())
    factor = min(1.0, most / (norm + 1e-6))
    for gradient in gradients:
        gradient.mul_(factor)
    return norm
