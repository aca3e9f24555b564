"""Under QLoRA there are two base models: that in bf16, which would be served instead of tuning, and that in 4 bits,
which is tuned. Which of them is measured, and what quantizing alone costs."""

import torch

from finetune_api.quantity import bytes_of, gibibytes
from finetune_api.status.evaluation import Quantized
from finetune_trainer.statistics.measurements import Measured


def shortage(needed: str, device: torch.device, pod_memory: str) -> str | None:
    """Why the base model in bf16, which needs `needed` (Resolved.base_memory), is left out; None where it fits.
    `pod_memory`: compute.memory, which is all there is on a CPU."""
    on_gpu = device.type == "cuda"
    available = torch.cuda.get_device_properties(device).total_memory if on_gpu else bytes_of(pod_memory)
    if bytes_of(needed) <= available:
        return None
    there = f"the GPU has {gibibytes(available)}" if on_gpu else f"compute.memory is {pod_memory}"
    return f"in bfloat16 it needs about {needed}, and {there}"


def only_quantized(base: Measured, shortage: str) -> Quantized:
    """What the status says where `base` is the base model in 4 bits, for want of room."""
    message = f"The base model was measured in 4 bits: {shortage}. Unquantized it may be better, and the gain smaller."
    return Quantized(loss=round(base.loss, 6), message=message)


def compare_quantized(base: Measured, quantized: Measured) -> Quantized:
    """What the status says of the base model in bf16 and in 4 bits, both measured on the same rows."""
    change = quantized.loss - base.loss
    message = (
        f"Quantizing to 4 bits alone moved the base model's loss by {change:+.4f} nats a token, to "
        f"{quantized.loss:.4f}. The base model is measured in bfloat16, as it would be served, the tuned one over "
        "4-bit weights, as it was trained."
    )
    return Quantized(loss=round(quantized.loss, 6), loss_change=round(change, 6), message=message)


def base_name(quantized: Quantized | None) -> str:
    """What sentences call the base model that was measured; `quantized`: what the status says under QLoRA."""
    if quantized is None:
        return "the base model"
    return f"the base model in {'4 bits' if quantized.loss_change is None else 'bfloat16'}"
