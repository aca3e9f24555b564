"""Fused LoRA layers: the same results as PEFT's, with fewer passes over memory.

PEFT writes W x, A x, B A x, its scaled copy and the sum to memory, and autograd writes as many gradients. Here the
matrix multiplication adds the low-rank products to the large ones, as in Unsloth's hand-written backward passes. Layers
with the same input (queries, keys and values; gate and up) can share one product with their A matrices."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that one module calls with the same input, in Llama and in many later models."""


@contextmanager
def fused_lora(model: nn.Module, four_bit: bool = False, shared_inputs: bool = False) -> Iterator[None]:
    """Fuses the model's plain LoRA layers on frozen weights. Layers with dropout, DoRA or a LoRA bias run as in PEFT.
    Layers on 4-bit weights are fused only with `four_bit`. With `shared_inputs` the layers of SIBLINGS share one
    product with their A matrices."""
    groups = _groups(model, four_bit, shared_inputs)
    for group in groups:
        shared = _SharedInput(group)
        for layer in group:
            layer.forward = partial(shared.output, layer)
    try:
        yield
    finally:
        for layer in (layer for group in groups for layer in group):
            del layer.forward  # restores the method of the class


def _groups(model: nn.Module, four_bit: bool, shared_inputs: bool) -> list[list[Any]]:
    """Returns the layers to fuse in groups. The layers of a group share an input."""
    groups: list[list[Any]] = []
    grouped: set[int] = set()
    for parent in model.modules() if shared_inputs else ():
        for names in SIBLINGS:
            layers = [getattr(parent, name, None) for name in names]
            if all(_is_fusible(layer, four_bit) for layer in layers):
                groups.append(layers)
                grouped.update(map(id, layers))
    alone = (module for module in model.modules() if id(module) not in grouped and _is_fusible(module, four_bit))
    return [*groups, *([module] for module in alone)]


def _is_fusible(module: Any, four_bit: bool) -> bool:
    kinds = (type(module), type(getattr(module, "base_layer", None)))
    known = kinds == (Linear, nn.Linear) or (four_bit and kinds == _four_bit_kinds())
    if not known or len(module.active_adapters) != 1:
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


@cache
def _four_bit_kinds() -> tuple[type, type] | None:
    """PEFT's LoRA layer over 4 bits and the layer below it. None without bitsandbytes, which LoRA does not need."""
    try:
        from bitsandbytes.nn import Linear4bit
        from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
    except ImportError:
        return None
    return LoraLinear4bit, Linear4bit


class _SharedInput:
    """Layers that are called one after the other with the same input. The first call computes the outputs of all."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def output(self, layer: Any, x: Tensor) -> Tensor:
        """Returns the output of `layer` for `x`. Keeps the outputs of the other layers until they are called."""
        if x is not self._input or id(layer) not in self._outputs:
            self._input = x
            outputs = _outputs(self._layers, x)
            self._outputs = {id(each): output for each, output in zip(self._layers, outputs, strict=True)}
        output = self._outputs.pop(id(layer))
        if not self._outputs:
            self._input = None
        return output


def _outputs(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    parts, factors = [], []
    for layer in layers:
        name = layer.active_adapters[0]
        parts.append(_Frozen(layer.base_layer, layer.scaling[name]))
        factors += [layer.lora_A[name].weight, layer.lora_B[name].weight]
    outputs: tuple[Tensor, ...] = _LoraLinears.apply(x.to(parts[0].dtype(x)), parts, *factors)
    # As in bitsandbytes, the output of a 4-bit layer has the dtype of its input. The output of a 16-bit layer has the
    # dtype of its weights.
    return tuple(y.to(x.dtype) if part.four_bit else y for y, part in zip(outputs, parts, strict=True))


@dataclass(frozen=True)
class _Frozen:
    """A frozen linear layer in 16 or 4 bits, and the factor of its adapter's product."""

    layer: Any
    scaling: float

    @property
    def four_bit(self) -> bool:
        return type(self.layer) is not nn.Linear

    def dtype(self, x: Tensor) -> torch.dtype:
        """Returns the dtype in which the layer computes."""
        dtype: torch.dtype = (self.layer.compute_dtype or x.dtype) if self.four_bit else self.layer.weight.dtype
        return dtype

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight, shape [outputs, inputs]. A 4-bit weight is dequantized at each call, as in
        bitsandbytes."""
        if not self.four_bit:
            weight: Tensor = self.layer.weight
            return weight
        from bitsandbytes.functional import dequantize_4bit

        whole: Tensor = dequantize_4bit(self.layer.weight.data, self.layer.weight.quant_state)
        return whole.to(dtype)


class _LoraLinears(torch.autograd.Function):
    """Computes x W' + bias + scaling x A' B' for each of `parts`. `factors`: A, shape [rank, inputs], and B, shape
    [outputs, rank], of each part in turn. Computes in the dtype of x; the gradients of A and B are in fp32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Sequence[_Frozen], *factors: Tensor) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        ranks = [len(a) for a in factors[::2]]
        pairs = zip(factors[1::2], parts, strict=True)
        a, b = _one(factors[::2], x.dtype), [(each * part.scaling).to(x.dtype) for each, part in pairs]
        with torch.autocast(x.device.type, enabled=False):
            low = rows @ a.T
            outputs = [
                _added(rows, part.weight(x.dtype), part.layer.bias).addmm_(part_low, part_b.T)
                for part, part_low, part_b in zip(parts, torch.split(low, ranks, dim=1), b, strict=True)
            ]
        ctx.save_for_backward(rows, low, a, *b)
        ctx.parts, ctx.ranks = parts, ranks
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        rows, low, a, *b = ctx.saved_tensors
        gradients = [gradient.reshape(-1, gradient.shape[-1]) for gradient in outer]
        low_gradient = _columns([gradient @ part_b for gradient, part_b in zip(gradients, b, strict=True)])
        inward = None
        if ctx.needs_input_grad[0]:
            inward = gradients[0] @ ctx.parts[0].weight(rows.dtype)
            for gradient, part in zip(gradients[1:], ctx.parts[1:], strict=True):
                inward.addmm_(gradient, part.weight(rows.dtype))
            inward = inward.addmm_(low_gradient, a).view(*outer[0].shape[:-1], -1)
        wide = torch.promote_types(rows.dtype, torch.float32)
        of_a = torch.split((low_gradient.T @ rows).to(wide), ctx.ranks)
        of_b = [
            (gradient.T @ part_low).to(wide) * part.scaling
            for gradient, part_low, part in zip(gradients, torch.split(low, ctx.ranks, dim=1), ctx.parts, strict=True)
        ]
        return inward, None, *(gradient for pair in zip(of_a, of_b, strict=True) for gradient in pair)


def _one(factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return factors[0].to(dtype) if len(factors) == 1 else torch.cat([each.to(dtype) for each in factors])


def _columns(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _added(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return rows @ weight.T if bias is None else torch.addmm(bias.to(rows.dtype), rows, weight.T)
