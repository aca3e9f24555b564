"""Reads the headers of .safetensors files, and single rows of their tensors, but never a whole file.

The format: https://github.com/huggingface/safetensors#format."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage

HEADER_LIMIT = 100_000_000
"""Longest header the format allows, in bytes."""
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per number of the types in which a model is trained. Tensors of other types are quantized or not weights."""
APART = 64
"""Rows with at most this distance are read by one request, together with the rows between them."""


@dataclass(frozen=True)
class Tensor:
    """The place and the shape of a tensor."""

    uri: str
    """The file that contains the tensor."""
    start: int
    """The position of the tensor's first byte in the file."""
    dtype: str
    """The type's name in the format, such as BF16."""
    shape: tuple[int, ...]


Tensors = Mapping[str, Tensor]
"""Tensors by their names."""


def read_header(storage: JobStorage, uri: str, size: int, copy: Path | None = None) -> dict[str, Tensor]:
    """Returns every tensor of a file of `size` bytes. `copy`: the file on the disk, if it was downloaded.

    Raises TrainerFailure ModelUnsupported if it is not a .safetensors file, and ModelNotFound if it is incomplete."""
    source = str(copy) if copy else uri
    start = storage.read_bytes(source, 0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT + 1
    if length > HEADER_LIMIT:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{uri} is not a safetensors file.",
            "If it is a Git LFS pointer, run git lfs pull, and replace it with the file. Otherwise use an intact copy.",
        )
    try:
        header = json.loads(storage.read_bytes(source, 8, length))
        entries = {name: value for name, value in header.items() if name != "__metadata__"}
        end = 8 + length + max(entry["data_offsets"][1] for entry in entries.values())
        found = {
            name: Tensor(
                uri, 8 + length + entry["data_offsets"][0], str(entry["dtype"]), tuple(map(int, entry["shape"]))
            )
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{uri} has a damaged safetensors header.",
            "Replace that file, or use an intact copy.",
        ) from error
    if size < end:
        raise TrainerFailure(
            FailureReason.MODEL_NOT_FOUND,
            f"{uri} is incomplete: it has {size:,} of {end:,} bytes.",
            "Replace that file, or use an intact copy.",
        )
    return found


def read_rows(storage: JobStorage, matrix: Tensor, rows: Sequence[int]) -> NDArray[np.float32]:
    """Returns rows of a matrix of a type in FLOATS, shape [rows, columns], in the order of `rows`."""
    width = matrix.shape[1] * FLOATS[matrix.dtype]
    found: dict[int, NDArray[np.float32]] = {}
    for first, last in _stretches(sorted(set(rows))):
        data = storage.read_bytes(matrix.uri, matrix.start + first * width, (last + 1 - first) * width)
        numbers = _floats(data, matrix.dtype).reshape(last + 1 - first, matrix.shape[1])
        found.update((first + offset, row) for offset, row in enumerate(numbers))
    return np.stack([found[row] for row in rows])


def spread(rows: int, count: int) -> list[int]:
    """Returns at most `count` indices of `rows` rows, evenly spread."""
    return sorted({row * rows // count for row in range(count)})


def _stretches(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the first and last row of each request. Together the requests cover `rows`, which are sorted."""
    ends = [position for position, (row, after) in enumerate(pairwise(rows)) if after - row > APART]
    firsts = [0, *(end + 1 for end in ends)]
    return [(rows[first], rows[last]) for first, last in zip(firsts, [*ends, len(rows) - 1], strict=True)]


def _floats(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def is_quantized(tensor: Tensor) -> bool:
    """Returns whether a tensor contains quantized numbers, judged by its type and its size."""
    return tensor.dtype not in FLOATS and prod(tensor.shape) > 1 and tensor.dtype != "BOOL"
