"""Triton kernels for operations between a layer's matrix products. They need one pass over memory; PyTorch needs
several.

They run on NVIDIA GPUs. For tests, Triton's interpreter (TRITON_INTERPRET=1) runs them slowly on a CPU. All arithmetic
is in fp32 and rounded once."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Elements that one program of the activation kernel processes."""


def runs_on(tensor: Tensor) -> bool:
    """Returns whether the kernels can run on the tensor's device."""
    return tensor.is_cuda or bool(triton.knobs.runtime.interpret)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Returns silu(gate) * up for two tensors of the same shape and dtype (Shazeer 2020), in one pass. The backward
    pass computes silu(gate) again instead of keeping it in memory."""
    output: Tensor = _SwiGLU.apply(gate.contiguous(), up.contiguous())
    return output


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        output = torch.empty_like(gate)
        _swiglu_forward[_blocks(gate)](gate, up, output, gate.numel(), BLOCK=BLOCK)
        return output

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        gradient = outer[0].contiguous()
        _swiglu_backward[_blocks(gate)](gradient, gate, up, of_gate, of_up, gate.numel(), BLOCK=BLOCK)
        return of_gate, of_up


def _blocks(tensor: Tensor) -> tuple[int]:
    return (triton.cdiv(tensor.numel(), BLOCK),)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _swiglu_forward(gate, up, output, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, inside).to(tl.float32)
    u = tl.load(up + at, inside).to(tl.float32)
    tl.store(output + at, (g * u / (1 + tl.exp(-g))).to(output.dtype.element_ty), inside)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _swiglu_backward(gradient, gate, up, of_gate, of_up, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    d = tl.load(gradient + at, inside).to(tl.float32)
    g = tl.load(gate + at, inside).to(tl.float32)
    u = tl.load(up + at, inside).to(tl.float32)
    sigmoid = 1 / (1 + tl.exp(-g))
    tl.store(of_gate + at, (d * u * sigmoid * (1 + g * (1 - sigmoid))).to(of_gate.dtype.element_ty), inside)
    tl.store(of_up + at, (d * g * sigmoid).to(of_up.dtype.element_ty), inside)


def takes_rotary(x: Tensor, cos: Tensor) -> bool:
    """Returns whether `rotary` supports x: it must be one sequence with all features rotated."""
    return runs_on(x) and x.dim() == 4 and len(x) == 1 and x.stride(-1) == 1 and cos.shape == (1, *x.shape[2:])


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotary position embedding (Su et al. 2021) in Llama's layout of two halves. x: shape [1, heads, tokens,
    size]; cos and sin: shape [1, tokens, size]. Returns the shape of x."""
    output: Tensor = _Rotary.apply(x, cos.contiguous(), sin.contiguous())
    return output


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        gradient = outer[0] if outer[0].stride(-1) == 1 else outer[0].contiguous()
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, sin, back=True), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    _, heads, tokens, size = x.shape
    output = torch.empty_like(x)  # same strides as x: the heads of a token are adjacent
    _rotary[(tokens,)](
        x,
        output,
        cos,
        sin,
        x.stride(1),
        x.stride(2),
        output.stride(1),
        output.stride(2),
        heads,
        size // 2,
        HEADS=triton.next_power_of_2(heads),
        HALF=triton.next_power_of_2(size // 2),
        BACK=back,
    )
    return output


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _rotary(  # type: ignore[no-untyped-def]
    x, output, cos, sin, x_head, x_token, out_head, out_token, heads, half,
    HEADS: tl.constexpr, HALF: tl.constexpr, BACK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Rotates all heads of one token. BACK multiplies by the transpose, for the gradient."""
    token = tl.program_id(0).to(tl.int64)
    head, feature = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (feature < half)
    angle, known = token * 2 * half + feature, feature < half
    cos1, cos2 = tl.load(cos + angle, known).to(tl.float32), tl.load(cos + angle + half, known).to(tl.float32)
    sin1, sin2 = tl.load(sin + angle, known).to(tl.float32), tl.load(sin + angle + half, known).to(tl.float32)
    at = x + token * x_token + head * x_head + feature
    x1, x2 = tl.load(at, inside).to(tl.float32), tl.load(at + half, inside).to(tl.float32)
    if BACK:
        y1, y2 = x1 * cos1 + x2 * sin2, x2 * cos2 - x1 * sin1
    else:
        y1, y2 = x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2
    to = output + token * out_token + head * out_head + feature
    tl.store(to, y1.to(output.dtype.element_ty), inside)
    tl.store(to + half, y2.to(output.dtype.element_ty), inside)
