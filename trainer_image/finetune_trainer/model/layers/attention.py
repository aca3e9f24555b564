"""Attention for packed rows: several documents in one sequence, where each document sees only itself."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "per_document"
HALF = (torch.bfloat16, torch.float16)
VARLEN_HEAD_SIZE = 256
"""Largest head size of FlashAttention-2."""
LONG = 1024
"""Fewest tokens per document, on average, for which one launch of cuDNN for each document is not slower."""
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
PACKED = (SDPBackend.FLASH_ATTENTION,)
"""Kernel for all documents in one launch. By default PyTorch 2.15 takes cuDNN on Hopper and Blackwell. cuDNN makes a
new plan for each number of documents and each longest one, so for nearly every micro-batch."""
PACKED_CUDNN_FIRST = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)
TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether `varlen_attn` supports grouped queries: fewer heads of keys and values than of queries. PyTorch 2.15 does.
For 2.11, which does not document it, keys and values are repeated, and autograd keeps the repeated tensors."""


_packed: ContextVar[Sequence[int] | None] = ContextVar("packed", default=None)


@contextmanager
def packed(document_lengths: Sequence[int]) -> Iterator[None]:
    """Tells `document_mask` the tokens of each document, in order, so that it builds no mask if attention document by
    document needs none."""
    token = _packed.set(document_lengths)
    try:
        yield
    finally:
        _packed.reset(token)


_cudnn = False
"""Not a ContextVar: on a GPU, gradient checkpointing reads it in autograd's own thread."""


@contextmanager
def prefer_cudnn() -> Iterator[None]:
    """Uses cuDNN's attention: for long documents one by one, and for others in one launch if it supports them. It is
    faster on Hopper than FlashAttention-2."""
    global _cudnn
    _cudnn = True
    try:
        yield
    finally:
        _cudnn = False


def document_mask(*sizes: Any, config: PreTrainedConfig, **options: Any) -> Tensor | None:
    """Returns Transformers' own mask, shape [1, 1, tokens, tokens], for generation and if a document is longer than the
    model's sliding window. Otherwise returns None."""
    lengths, window = _packed.get(), getattr(config, "sliding_window", None)
    if lengths is not None and not exceeds(lengths, window):
        return None
    mask: Tensor | None = sdpa_mask(*sizes, config=config, **options)
    return mask


def exceeds(document_lengths: Sequence[int], window: int | None) -> bool:
    """Returns whether a document is longer than the sliding window."""
    return window is not None and max(document_lengths) > window


def per_document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    document_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Computes attention for each document separately if `document_lengths` is given. Query, key and value: shape [1,
    heads, tokens, head size]. Returns shape [1, tokens, heads, head size].

    A block mask over the whole sequence gives the same result, but costs 45% of a training step on a CPU. It is used
    for generation, and without FlashAttention for documents longer than the window."""
    query, key, value = as_multiplied(query.device.type, query, key, value)
    alone = document_lengths is not None and takes_cudnn(document_lengths, sliding_window)
    if document_lengths is not None and not alone and takes_varlen(query, value, options.get("dropout", 0.0)):
        return _varlen(query, key, value, document_lengths, sliding_window, options.get("scaling")), None
    if document_lengths is None or exceeds(document_lengths, sliding_window):
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    # On the CPU the backward pass in bf16 takes up to twice as long as in fp32, at the usual lengths.
    dtype = torch.float32 if query.device.type == "cpu" and query.dtype == torch.bfloat16 else query.dtype
    tensors = [torch.split(tensor.to(dtype), list(document_lengths), dim=2) for tensor in (query, key, value)]
    backends = sdpa_kernel(CUDNN_FIRST, set_priority=True) if alone else nullcontext()
    with torch.autocast(query.device.type, enabled=False), backends:
        outputs = [
            sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in zip(*tensors, strict=True)
        ]
    return torch.cat(outputs, dim=1).to(query.dtype), None


def takes_cudnn(document_lengths: Sequence[int], window: int | None) -> bool:
    """Returns whether cuDNN processes these documents one by one: only within `prefer_cudnn`, and if they are long."""
    long = sum(document_lengths) >= LONG * len(document_lengths)
    return _cudnn and long and not exceeds(document_lengths, window)


def as_multiplied(device: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Casts the three to autocast's dtype on a GPU. On a CPU it returns them unchanged.

    For method Full the residual stream is in fp32, so rotary positions leave queries and keys in fp32. FlashAttention
    does not support fp32."""
    if device == "cpu" or not torch.is_autocast_enabled(device):
        return query, key, value
    dtype = torch.get_autocast_dtype(device)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def takes_varlen(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Returns whether FlashAttention supports these tensors: half precision, on an NVIDIA GPU of Ampere or newer."""
    size = query.shape[-1]
    return (
        query.device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and query.dtype in HALF
        and size == value.shape[-1] <= VARLEN_HEAD_SIZE
        and size % 8 == 0
        and not dropout
    )


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], window: int | None, scaling: float | None
) -> Tensor:
    """Computes attention for all documents in one launch of a kernel: FlashAttention, or cuDNN within `prefer_cudnn`.

    Gradient checkpointing calls this function again, so the kernel is chosen here. The backward pass of the kernel
    takes the one that the forward pass has noted."""
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(query.device, non_blocking=True)
    # From [1, heads, tokens, size] to [tokens, heads, size].
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    grouped, options = q.shape[1] != k.shape[1], dict[str, Any]()
    if TAKES_GROUPS:
        options["enable_gqa"] = grouped
    elif grouped:
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
    with sdpa_kernel(list(PACKED_CUDNN_FIRST if _cudnn else PACKED), set_priority=True):
        output = varlen_attn(
            q,
            k,
            v,
            ends,
            ends,
            max(lengths),
            max(lengths),
            scale=scaling,
            # Tokens visible before and after the current one. Transformers' window includes the current one.
            window_size=(-1 if window is None else window - 1, 0),
            **options,
        )
    assert isinstance(output, Tensor)  # a tuple only if the log-sum-exp is requested
    return output[None]


AttentionInterface.register(NAME, per_document_attention)
# Transformers passes no mask to an attention function unless a mask function has the same name.
AttentionMaskInterface.register(NAME, document_mask)


def use_document_attention(model: PreTrainedModel) -> None:
    """Switches a model that Transformers runs with SDPA to `per_document_attention`. Other models keep their attention.
    There Transformers itself separates packed documents by their restarting position_ids."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # SDPA cannot cap scores. Transformers 5.23 avoids SDPA here; 5.17 runs Gemma 2 on it, silently without the cap.
        model.set_attn_implementation("eager")
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if model.config._attn_implementation == "sdpa" and layers <= {"full_attention", "sliding_attention"}:
        model.set_attn_implementation(NAME)
