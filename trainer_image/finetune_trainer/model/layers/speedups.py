"""Optional speedups of a training step on a GPU. They change results only by rounding, and each has its own switch.

A switch is off until it has been measured on a GPU (benchmarks/gpu). They replace a part of the model's code in
Transformers only if that part equals Llama's code word for word, as in most later families."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama

from finetune_trainer.model.layers.attention import prefer_cudnn
from finetune_trainer.model.layers.fused_lora import fused_lora


@dataclass(frozen=True)
class Speedups:
    """The switches."""

    rms_norm: bool = False
    """PyTorch's own kernel for RMSNorm in place of six operations."""
    swiglu: bool = False
    """The gated activation in one kernel. It also keeps a third less memory for the backward pass."""
    rotary: bool = False
    """Rotary position embedding in one kernel."""
    shared_inputs: bool = False
    """One product with LoRA's A matrices for queries, keys and values, and one for gate and up."""
    four_bit: bool = False
    """Fused LoRA also over 4-bit layers."""
    cudnn_attention: bool = False
    """cuDNN's attention: for long documents one by one, for others in one launch."""


DEFAULT = Speedups()


@contextmanager
def use_speedups(model: nn.Module, speedups: Speedups = DEFAULT) -> Iterator[None]:
    """Runs `model`, with its adapter, with these speedups and with fused LoRA."""
    with ExitStack() as stack:
        stack.enter_context(fused_lora(model, speedups.four_bit, speedups.shared_inputs))
        if speedups.cudnn_attention:
            stack.enter_context(prefer_cudnn())
        for module in model.modules():
            forward = _norm(module) if speedups.rms_norm else None
            forward = _mlp(module) if speedups.swiglu and forward is None else forward
            if forward is not None:
                stack.enter_context(_replaced(module, "forward", forward))
        if speedups.rotary:
            for place in {sys.modules[type(module).__module__] for module in model.modules()}:
                if _is_llamas(getattr(place, "apply_rotary_pos_emb", None), llama.apply_rotary_pos_emb):
                    plain = place.apply_rotary_pos_emb
                    stack.enter_context(_replaced(place, "apply_rotary_pos_emb", partial(_rotary, plain)))
        yield


@contextmanager
def _replaced(place: Any, name: str, value: object) -> Iterator[None]:
    """Replaces an attribute of a PyTorch module or a Python module."""
    own = vars(place).get(name)
    setattr(place, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(place, name)  # restores the attribute of the class
        else:
            setattr(place, name, own)


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if not _is_llamas(type(module).forward, llama.LlamaRMSNorm.forward):
        return None
    weight, epsilon = module.weight, module.variance_epsilon
    assert isinstance(weight, Tensor)
    assert isinstance(epsilon, float)

    def forward(x: Tensor) -> Tensor:
        if x.dtype != weight.dtype:
            return type(module).forward(module, x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, weight.shape, weight, epsilon)

    return forward


def _mlp(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if not _is_llamas(type(module).forward, llama.LlamaMLP.forward) or not _is_silu(module.act_fn):
        return None
    from finetune_trainer.model.layers.fused_kernels import runs_on, swiglu

    mlp: Any = module

    def forward(x: Tensor) -> Tensor:
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
        output: Tensor = mlp.down_proj(swiglu(gate, up) if runs_on(gate) else mlp.act_fn(gate) * up)
        return output

    return forward


def _is_silu(activation: object) -> bool:
    """Returns whether an activation is SiLU. Transformers has its own class for SiLU."""
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _rotary(
    plain: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    from finetune_trainer.model.layers.fused_kernels import rotary, takes_rotary

    if unsqueeze_dim == 1 and takes_rotary(q, cos) and takes_rotary(k, cos):
        return rotary(q, cos, sin), rotary(k, cos, sin)
    rotated: tuple[Tensor, Tensor] = plain(q, k, cos, sin, unsqueeze_dim)
    return rotated


def _is_llamas(function: Any, llamas: Any) -> bool:
    return function is not None and _code(inspect.unwrap(function)) == _code(inspect.unwrap(llamas))


@cache
def _code(function: Any) -> str:
    """Returns a function's code without name, types and docstring, or "" if there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError):
        return ""
    assert isinstance(tree, ast.FunctionDef)
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    names = [argument.arg for argument in tree.args.args]
    return "\n".join([*names, *(ast.dump(statement) for statement in body)])
