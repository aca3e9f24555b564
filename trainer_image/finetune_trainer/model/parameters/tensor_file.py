"""Tensors as a .safetensors file. Writing one needs memory for one tensor: a pod often cannot hold a whole model."""

import io
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from finetune_trainer.pod.liveness.heartbeat import attended
from finetune_trainer.pod.positioned import Positioned
from finetune_trainer.ranks.shards import whole

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
}
"""The names of the number formats in a .safetensors file."""
BUFFER_BYTES = 1024 * 1024


def open_tensors(tensors: Mapping[str, Tensor]) -> BinaryIO:
    """Returns the bytes of a .safetensors file with these tensors, as a seekable stream. The tensors must not change
    while it is read. Tensors on a GPU are copied one at a time."""
    return io.BufferedReader(_TensorFile(tensors), BUFFER_BYTES)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Writes these tensors to the file `path`, each converted to `dtype`. Beats at each.

    Sharded tensors are written whole, so all ranks have to send their shards meanwhile (`ranks.shards.send`). Raises
    what `whole` raises."""
    header, _ = _described({name: (dtype, tensor.shape) for name, tensor in tensors.items()})
    with path.open("wb") as file:
        file.write(header)
        for tensor in attended(tensors.values()):
            file.write(_bytes_of(whole(tensor.detach()).to("cpu", dtype)))


class _TensorFile(Positioned):
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = list(tensors.values())
        described = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        self._header, ends = _described(described)
        self._starts = [0, *(len(self._header) + end for end in ends[:-1])]
        super().__init__(len(self._header) + ends[-1])
        self._part: tuple[int, memoryview] | None = None

    def readinto(self, buffer: Any) -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and self._position < self.size:
            part = bisect_right(self._starts, self._position) - 1
            data = self._bytes(part)[self._position - self._starts[part] :][: len(view) - filled]
            view[filled : filled + len(data)] = data
            filled += len(data)
            self._position += len(data)
        return filled

    def _bytes(self, part: int) -> memoryview:
        """Returns part `part` of the file: the header, or a tensor."""
        if part == 0:
            return memoryview(self._header)
        if self._part is None or self._part[0] != part:
            self._part = part, _bytes_of(self._tensors[part - 1].detach().cpu())
        return self._part[1]


def _described(layouts: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> tuple[bytes, list[int]]:
    """Returns the header of a file with tensors of these number formats and shapes, and the ends of the tensors after
    it; the first end is 0."""
    ends = list(accumulate((prod(shape) * dtype.itemsize for dtype, shape in layouts.values()), initial=0))
    header = {
        name: {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [ends[place], ends[place + 1]]}
        for place, (name, (dtype, shape)) in enumerate(layouts.items())
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text, ends


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor on the CPU."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
