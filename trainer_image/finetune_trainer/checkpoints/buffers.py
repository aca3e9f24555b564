"""The copy of the trained parameters and their state that is uploaded while training goes on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.ranks.shards import whole

MOST_PINNED = 4 * 2**30
"""Largest copy in pinned memory, in bytes. A larger one would take memory from the rest of the node for seconds of a
run of hours."""


class Buffers:
    """One copy of a set of tensors in the host's memory. The memory is allocated once."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._pinned: Tensor | None = None

    @property
    def allocated(self) -> bool:
        """Whether `copy` needs no more memory."""
        return bool(self._copies)

    @property
    def is_pinned(self) -> bool:
        """Whether the GPU can write to the memory by itself."""
        return self._pinned is not None

    def allocate(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocates memory for these tensors, in any thread. The pages are touched, so that the first copy is as fast
        as later ones.

        On a GPU the memory is pinned unless it is large: the GPU then writes to it at full speed."""
        on_gpu = any(tensor.device.type == "cuda" for tensor in tensors.values())
        arena = torch.zeros(sum(_padded(tensor) for tensor in tensors.values()), dtype=torch.uint8).fill_(0)
        if on_gpu and arena.numel() <= MOST_PINNED:
            # Not torch's own pinned memory: its sizes are powers of two.
            refused = int(_cuda().cudaHostRegister(arena.data_ptr(), arena.numel(), 0))
            self._pinned = None if refused else arena
        start, copies = 0, dict[str, Tensor]()
        for name, tensor in tensors.items():
            part = arena[start : start + tensor.numel() * tensor.element_size()]
            copies[name] = part.view(tensor.dtype).view(tensor.shape)
            start += _padded(tensor)
        self._copies = copies  # at once, because another thread may ask for `allocated`

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Copies the tensors and returns the copies, which the next call overwrites. Sharded tensors are copied whole,
        so all ranks have to send their shards meanwhile (`finetune_trainer.ranks.shards.send`)."""
        if self._copies.keys() != tensors.keys():
            self.release()
            self.allocate(tensors)
        for name, tensor in tensors.items():
            self._copies[name].copy_(whole(tensor), non_blocking=True)
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            torch.cuda.synchronize()
        return self._copies

    def release(self) -> None:
        """Gives the memory back. Nothing may read the copies any more."""
        if self._pinned is not None:
            _cuda().cudaHostUnregister(self._pinned.data_ptr())
        self._pinned, self._copies = None, {}


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Returns the size of the tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _padded(tensor: Tensor) -> int:
    size = tensor.numel() * tensor.element_size()
    return size + -size % 8


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
