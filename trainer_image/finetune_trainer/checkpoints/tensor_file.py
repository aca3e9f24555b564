"""Tensors as a .safetensors file that is read from where they are: writing a checkpoint needs no further copy."""

import io
import json
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, BinaryIO

import torch
from torch import Tensor

from finetune_trainer.pod.positioned import Positioned

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


class _TensorFile(Positioned):
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = list(tensors.values())
        sizes = [tensor.numel() * tensor.element_size() for tensor in self._tensors]
        ends = list(accumulate(sizes, initial=0))
        header = {
            name: {
                "dtype": DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [ends[place], ends[place + 1]],
            }
            for place, (name, tensor) in enumerate(tensors.items())
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
        self._header = len(text).to_bytes(8, "little") + text
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
            flat = self._tensors[part - 1].detach().cpu().contiguous().reshape(-1)
            self._part = part, memoryview(flat.view(torch.uint8).numpy().data)
        return self._part[1]
