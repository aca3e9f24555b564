"""The two base models under QLoRA, and what quantizing alone costs.

The base model in bf16 would be served without tuning. The base model in 4 bits is tuned. The evaluation compares with
the base model in bf16 if it fits into memory."""

import torch

from finetune_api.quantity import bytes_of, gibibytes
from finetune_api.status.evaluation import Quantized
from finetune_trainer.statistics.measurements import Measured


def shortage(needed: str, device: torch.device, pod_memory: str) -> str | None:
    """Returns why the base model in bf16 does not fit into memory, or None if it fits. `needed`: its memory,
    Resolved.base_memory. `pod_memory`: compute.memory, which limits the model on a CPU."""
    on_gpu = device.type == "cuda"
    available = torch.cuda.get_device_properties(device).total_memory if on_gpu else bytes_of(pod_memory)
    if bytes_of(needed) <= available:
        return None
    there = f"the GPU has {gibibytes(available)}" if on_gpu else f"spec.compute.memory is {pod_memory}"
    return f"the base model in bfloat16 needs about {needed}, and {there}"


def only_quantized(base: Measured, shortage: str) -> Quantized:
    """Returns status.evaluation.quantized for a job that could measure only the base model in 4 bits. `base`: that
    model's measurement. `shortage`: why the base model in bf16 did not fit."""
    message = (
        f"The base model was measured in 4 bits, because {shortage}. The base model in bfloat16 may be better. Then "
        "the real gain is smaller."
    )
    return Quantized(loss=round(base.loss, 6), message=message)


def compare_quantized(base: Measured, quantized: Measured) -> Quantized:
    """Returns status.evaluation.quantized from the base model in bf16 and in 4 bits, measured on the same rows."""
    change = quantized.loss - base.loss
    message = (
        f"Quantizing the base model to 4 bits changed its loss by {change:+.4f} nats per token, to "
        f"{quantized.loss:.4f}. The base model was measured in bfloat16, as it would be served. The tuned model was "
        "measured on 4-bit weights, as it was trained."
    )
    return Quantized(loss=round(quantized.loss, 6), loss_change=round(change, 6), message=message)


def base_name(quantized: Quantized | None) -> str:
    """Returns how sentences call the measured base model. `quantized`: status.evaluation.quantized, None without
    QLoRA."""
    if quantized is None:
        return "the base model"
    return f"the base model in {'4 bits' if quantized.loss_change is None else 'bfloat16'}"
