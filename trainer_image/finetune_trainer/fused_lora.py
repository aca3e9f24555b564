"""LoRA's linear layers in fewer passes over memory: what PEFT computes, with the update added inside the product.

PEFT writes W x, A x, B A x, its scaled copy and the sum, and autograd as many gradients. Here the low-rank products are
accumulated into the large ones by the matrix multiplication itself, as Unsloth does by hand-written backward passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


@contextmanager
def fused_lora(model: nn.Module) -> Iterator[None]:
    """Runs the model's plain LoRA layers over frozen matrices fused while in here. Those with dropout, DoRA, a bias of
    their own or a quantized base stay as PEFT runs them."""
    modules = [module for module in model.modules() if _is_plain(module)]
    for module in modules:
        module.forward = partial(_forward, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's own shows again


def _is_plain(module: Any) -> bool:
    if type(module) is not Linear or type(module.base_layer) is not nn.Linear or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    return (
        name in module.lora_A
        and name not in module.lora_variant
        and isinstance(module.lora_dropout[name], nn.Identity)
        and module.lora_B[name].bias is None
        and not any(parameter.requires_grad for parameter in module.base_layer.parameters())
        and not module.merged
        and not module.disable_adapters
    )


def _forward(module: Linear, x: Tensor) -> Tensor:
    base, name = module.base_layer, module.active_adapters[0]
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    output: Tensor = _LoraLinear.apply(x.to(base.weight.dtype), base.weight, base.bias, a, b, module.scaling[name])
    return output


class _LoraLinear(torch.autograd.Function):
    """x W' + bias + scaling x A' B', all in the dtype of W; the gradients of A and B in theirs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = a.to(weight.dtype), (b * scaling).to(weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            low = rows @ a.T
            output = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
            output.addmm_(low, b.T)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling = scaling
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, low, weight, a, b = ctx.saved_tensors
        gradient = outer[0].reshape(-1, outer[0].shape[-1])
        low_gradient = gradient @ b
        inward = None
        if ctx.needs_input_grad[0]:
            inward = (gradient @ weight).addmm_(low_gradient, a).view(*outer[0].shape[:-1], -1)
        of_a, of_b = low_gradient.T @ rows, gradient.T @ low
        wide = torch.promote_types(weight.dtype, torch.float32)
        return inward, None, None, of_a.to(wide), of_b.to(wide) * ctx.scaling, None
