"""The memory of a model whose weights are sharded over several GPUs (FSDP2). docs/sizing.md derives the terms."""

from finetune_trainer.sizing.model_shape import ModelShape

BF16, FP32 = 2, 4
GATHERED = 3
"""Layers whose whole weights a GPU has at a time: the one that computes, the next one, and the buffer from which the
next one is copied."""

NCCL = 2**30
"""Bytes of NCCL's buffers on a GPU that trains with others. NCCL has a buffer for each channel and connection: 4 MiB
(NCCL_BUFFSIZE), 4.7 MiB and 0.5 MiB for its three protocols. With 32 channels these are 0.29 GiB for each neighbour of
a GPU. It has one in a ring, and usually two more in a tree. Calculated, not measured."""


def can_shard(method: str, optimizer: str) -> bool:
    """Returns whether FSDP2 can shard the weights. It leaves 4-bit weights whole, and the 8-bit optimizer of
    bitsandbytes fails on shards. Under LoRA only frozen weights are sharded, so every optimizer works."""
    return method == "LoRA" or (method == "Full" and optimizer == "AdamW")


def gathered_bytes(shape: ModelShape, is_full: bool) -> float:
    """Returns the bytes of the whole weights and gradients that a GPU has at a time.

    These are the weights of GATHERED layers in bf16. Under Full these are also the bf16 gradients of a layer and their
    fp32 copy that is sent. The embedding and the head are gathered in fp32 through a buffer, and autocast makes a bf16
    copy. Their gradients and the copy that is sent are in fp32."""
    layer = shape.linear_parameters / shape.layers
    if not is_full:
        return GATHERED * BF16 * layer
    outside = shape.parameters - shape.linear_parameters
    return (GATHERED * BF16 + BF16 + FP32) * layer + (2 * FP32 + BF16 + 2 * FP32) * outside
