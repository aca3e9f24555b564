"""The memory that a kind of device needs beside the tensors of a run."""

from dataclasses import dataclass

from finetune_trainer.sizing.shards import BF16, FP32, NCCL


@dataclass(frozen=True)
class Device:
    """Measured numbers of a kind of device."""

    runtime: int
    """Memory before the first tensor: the CUDA context and the workspaces of the libraries, or the process on a CPU."""
    slack: float
    """Memory that the allocator loses between tensors, as a share of activations and buffers."""
    attention: int
    """Bytes of each number that attention keeps."""
    logits: int
    """Logits in one chunk of a frozen output head (finetune_trainer.model.loss)."""
    connections: int = 0
    """Memory for the connections to the other GPUs of a training."""


CUDA = Device(runtime=1024**3, slack=0.1, attention=BF16, logits=2**26, connections=NCCL)
"""A CUDA context with the kernels of PyTorch needs about 0.5 GiB on Ampere and Hopper. cuBLAS needs 32 MiB for each
handle and stream on Hopper. The rest is for the driver. We have not measured these numbers yet; benchmarks/gpu
measures them."""
CPU = Device(runtime=950 * 1024**2, slack=0.1, attention=FP32, logits=2**23)
"""The process with PyTorch, Transformers, PEFT and bitsandbytes needs 836 MiB. The rest is memory of oneDNN and the
threads during computation. Measured with torch 2.15 on x86-64, see docs/benchmarks.md. Attention runs in fp32 on a CPU,
because the backward pass of the bf16 kernel needs three times as long."""
