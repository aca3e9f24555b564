"""Predicts for how long the GPUs of a job send each other weights and gradients."""

from dataclasses import dataclass

from finetune_trainer.sizing.memory import Setup, trained_parameters
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.shards import BF16, FP32

INTERCONNECT = 50e9
"""Bytes per second that a GPU sends to another one of its node. This is an assumption: PCIe is slower, NVLink is
faster."""
NETWORK = 25e9 / 8
"""Bytes per second that a node sends to another one. This is an assumption: 25 Gb/s. The pods have no RDMA device, so
their ranks send over the pod network. There, clouds give most machines with GPUs 10 to 100 Gb/s
(https://cloud.google.com/compute/docs/gpus/gpu-network-bandwidth)."""


@dataclass(frozen=True)
class Layout:
    """The GPUs of a job."""

    gpus: int = 1
    nodes: int = 1

    @property
    def rate(self) -> float:
        """Bytes per second over the slowest link between two GPUs. The GPUs of a node share its network."""
        return INTERCONNECT if self.nodes == 1 else NETWORK


def gathering_seconds(shape: ModelShape, setup: Setup, layout: Layout) -> float:
    """Returns the seconds in which the GPUs get the weights of the other GPUs once, or 0 if each has whole weights.

    NCCL sends them around a ring of all GPUs. Each link, also one between nodes, carries all weights but one shard
    (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md)."""
    return _around(layout, BF16 * shape.parameters) if setup.shards > 1 else 0.0


def summing_seconds(shape: ModelShape, setup: Setup, layout: Layout) -> float:
    """Returns the seconds in which the GPUs add up the fp32 gradients of a step: parts of the sum go around the ring,
    and then the sum does. Under Full with sharded weights, the backward pass has added them up."""
    if setup.method == "Full" and setup.shards > 1:
        return 0.0
    return 2 * _around(layout, FP32 * trained_parameters(shape, setup))


def _around(layout: Layout, size: float) -> float:
    return (layout.gpus - 1) / layout.gpus * size / layout.rate
