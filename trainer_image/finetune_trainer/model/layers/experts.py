"""Mixture-of-experts layers in which each token passes its experts and the adapters of these experts.

PEFT adds the adapters' products to the weights of all experts before each forward pass. In bf16 this rounds small
updates away, and autograd keeps a second copy of all experts. Here the products are computed for the tokens, as in any
other LoRA layer. Transformers' own layer of matrix products, which this replaces, ignores autocast."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from finetune_trainer.base.experts import DOWN, GATE_UP

NAME = "adapted_experts"
ALIGNED = 8
"""Numbers in bf16 whose size is the alignment that grouped matrix products on a GPU require."""

Factors = tuple[Tensor, Tensor]
"""The two factors of each expert's update, already scaled: [experts, inputs, rank] and [experts, rank, outputs]."""


def use_experts(model: PreTrainedModel) -> None:
    """Switches the experts of a model to `pass_experts`. A model without experts is unchanged."""
    if any(is_experts(module) for module in model.modules()):
        model.config.get_text_config()._experts_implementation = NAME
        model.config._experts_implementation = NAME


def is_experts(module: nn.Module) -> bool:
    """Returns whether a module has the stacked weights of experts."""
    stack = dict(module.named_parameters(recurse=False)).get(GATE_UP)
    return stack is not None and stack.ndim == 3


def use_expert_adapters(model: nn.Module) -> None:
    """Computes the adapters of experts for the tokens. Merged and disabled adapters run as in PEFT."""
    inner = {id(module.base_layer) for module in model.modules() if isinstance(module, ParamWrapper)}
    for module in model.modules():
        if isinstance(module, ParamWrapper) and id(module) not in inner:
            setattr(module, "forward", partial(_forward, module))  # noqa: B010 - of this instance


def _forward(outer: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Runs experts with adapters. `outer`: the outermost of the wrappers that PEFT nests, one for each parameter."""
    if outer.disable_adapters or outer.merged:
        plain: Tensor = type(outer).forward(outer, hidden_states, top_k_index, top_k_weights)
        return plain
    factors, layer = {}, outer
    while isinstance(layer, ParamWrapper):
        factors[layer.parameter_name] = _factors(layer)
        layer = layer.base_layer
    return pass_experts(layer, hidden_states, top_k_index, top_k_weights, factors)


def pass_experts(
    experts: Any,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    factors: Mapping[str, Factors] | None = None,
) -> Tensor:
    """Returns the sum of the experts' results for each token, weighted by the router, shape [tokens, hidden].

    `top_k_index`, `top_k_weights`: the experts of each token and their weights, shape [tokens, experts per token]. No
    expert has a capacity, so no token is dropped."""
    tokens, each = top_k_index.shape
    chosen, order = torch.sort(top_k_index.reshape(-1), stable=True)
    # Counting them would make the processor wait for the GPU.
    ends = torch.searchsorted(chosen, torch.arange(experts.num_experts, device=chosen.device), right=True)
    x = hidden_states[order // each].to(_dtype(experts, hidden_states))
    inner = experts._apply_gate(_product(experts, GATE_UP, x, chosen, ends, factors or {}))
    outputs = _product(experts, DOWN, inner.to(x.dtype), chosen, ends, factors or {})
    weighted = outputs * top_k_weights.reshape(-1)[order, None]
    # Each token's results are summed in the order of its experts, and not as they arrive.
    return weighted[torch.argsort(order)].view(tokens, each, -1).sum(dim=1).to(hidden_states.dtype)


def _dtype(experts: Any, x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    dtype: torch.dtype = getattr(experts, DOWN).dtype
    return dtype


def _product(
    experts: Any, name: str, x: Tensor, chosen: Tensor, ends: Tensor, factors: Mapping[str, Factors]
) -> Tensor:
    """Returns the product of each row of `x` with its expert's matrix in parameter `name`, plus bias and update. The
    rows are sorted by expert: `chosen` has the expert of each row, `ends` the end of each expert's rows."""
    weight = getattr(experts, name).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        y = grouped(x, weight if experts.is_transposed else weight.transpose(1, 2), ends)
        if name in factors:
            first, second = (factor.to(x.dtype) for factor in factors[name])
            y = y + grouped(grouped(x, first, ends), second.contiguous(), ends)
        if experts.has_bias:
            y = y + getattr(experts, f"{name}_bias").to(x.dtype)[chosen]
    return y


def grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Returns the product of each row of `x`, shape [rows, inputs], with the matrix of its expert. `weights`: shape
    [experts, inputs, outputs]; `ends`: the end of each expert's rows, shape [experts]."""
    if x.device.type == "cuda" and x.dtype == torch.bfloat16:
        return F.grouped_mm(x, weights, offs=ends.to(torch.int32))
    # PyTorch's product for CPUs has no fp64, and is this loop.
    rows = torch.tensor_split(x, ends[:-1].tolist())
    return torch.cat([row @ weight for row, weight in zip(rows, weights.unbind(), strict=True)])


def _factors(wrapper: Any) -> Factors:
    """Returns the factors of a wrapper's update. PEFT has both in one matrix for all experts: A, shape [experts x rank,
    inputs], and B, shape [outputs, rank x experts]."""
    adapter = wrapper.active_adapters[0]
    a, b = wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight
    first = a.view(wrapper.num_experts, -1, a.shape[1]).transpose(1, 2)
    second = b.view(len(b), -1, wrapper.num_experts).permute(2, 1, 0) * wrapper.scaling[adapter]
    if wrapper._did_swap_in_out_features == wrapper.get_base_layer().is_transposed:
        # A and B are named for the axes of the parameter as PEFT 0.19 reads it.
        first, second = second.transpose(1, 2), first.transpose(1, 2)
    missing = -first.shape[2] % ALIGNED if a.is_cuda else 0
    return F.pad(first, (0, missing)), F.pad(second, (0, 0, 0, missing))


ALL_EXPERTS_FUNCTIONS.register(NAME, pass_experts)
