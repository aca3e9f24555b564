"""Predicts the memory of a training pod on its node, beside the memory of its GPUs. docs/sizing.md derives the terms.

The prediction is below what a pod needs rather than above it, because it refuses jobs. What the trainer can do without
does not count, such as the copy of a checkpoint."""

from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.shards import BF16

PROCESS = 512 * 1024**2
"""Memory of one process with PyTorch, Transformers, PEFT and bitsandbytes, without the pages of files. Measured on a
CPU, see docs/sizing.md."""
CUDA = 2 * 1024**3
"""Memory that CUDA adds to a process. This is an assumption, so only proposed values count it."""
FILE_BYTES = 5 * 10**9
"""Largest file of a model that is written. This was save_pretrained's default until Transformers 5."""
COPIED_SHARE = 0.9
"""Share of the free memory that a copy for a checkpoint may take (finetune_trainer.checkpoints.buffers)."""


def host_memory(
    shape: ModelShape, ranks: int, converted: int, *, full: bool, sharded: bool, merge: bool = False
) -> float:
    """Returns the bytes that a pod with `ranks` GPUs needs: its processes, and the larger of loading and writing.

    Loading: a model is read from a file that is mapped into memory, which needs no memory of its own. Each rank of a
    sharded model loads it to the CPU, where weights that are `converted` (those that are not in bf16, and experts that
    are stacked) become copies in bf16. Otherwise each weight goes to the GPU at once.

    Writing: save_pretrained copies the weights of one file from the GPU. Of a sharded model under Full, a matrix at a
    time is collected and written, by the first rank of each node."""
    loading = ranks * BF16 * converted if sharded else 0
    writes_whole = merge or (full and not sharded)
    writing = min(FILE_BYTES, BF16 * shape.stored_parameters) if writes_whole else 0
    collecting = BF16 * shape.vocabulary * shape.hidden if full else 0
    return ranks * PROCESS + max(loading, writing, collecting)


def memory_for_checkpoints(ranks: int, state: float) -> float:
    """Returns the bytes that the first pod of a training with sharded weights needs to copy its `state`."""
    return ranks * PROCESS + state / COPIED_SHARE
