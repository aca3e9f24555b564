"""The copy of the trained parameters and their state that is uploaded while training goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.ranks.shards import whole

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
MARGIN = 0.1
"""Share of the free memory that a copy leaves free."""
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

    def allocate(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocates memory for these tensors. The pages are touched, so that the first copy is as fast as later ones.

        On a GPU the memory is pinned unless it is large: the GPU then writes to it at full speed."""
        on_gpu = any(tensor.device.type == "cuda" for tensor in tensors.values())
        arena = torch.zeros(sum(_padded(tensor) for tensor in tensors.values()), dtype=torch.uint8).fill_(0)
        if on_gpu and arena.numel() <= MOST_PINNED:
            # Not torch's own pinned memory: its sizes are powers of two.
            refused = int(_cuda().cudaHostRegister(arena.data_ptr(), arena.numel(), 0))
            self._pinned = None if refused else arena
        start = 0
        for name, tensor in tensors.items():
            part = arena[start : start + tensor.numel() * tensor.element_size()]
            self._copies[name] = part.view(tensor.dtype).view(tensor.shape)
            start += _padded(tensor)

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


def has_room(size: int) -> bool:
    """Returns whether `size` bytes fit into the memory that the pod may still use.

    What the process used at its peak counts as used, because the next step may need as much again."""
    return size <= (1 - MARGIN) * (free_memory() - given_back())


def given_back(status: Path = STATUS) -> int:
    """Returns by how many bytes the memory of this process was larger than now, at its peak."""
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return (int(fields["VmHWM"].split()[0]) - int(fields["VmRSS"].split()[0])) * 1024


def free_memory(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> int:
    """Returns the memory that this process can still get, in bytes: on the node, and below the limit of its cgroup."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if not limit.exists() or (text := limit.read_text().strip()) == "max":
        return free
    statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    # Cached files count as used, but the kernel gives their memory back.
    cached = int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0))
    return max(0, min(free, int(text) - int(used.read_text()) + cached))


def _padded(tensor: Tensor) -> int:
    size = tensor.numel() * tensor.element_size()
    return size + -size % 8


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
