"""Attention for rows that lie end to end in one sequence: each document sees only itself."""

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
"""Largest head FlashAttention-2 takes."""
LONG = 1024
"""Tokens of a document, on average, from which on a launch of cuDNN for each is no loss."""
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether `varlen_attn` takes fewer heads of keys and values than of queries. PyTorch 2.15 does; 2.11 promises nothing,
so there they are repeated, and autograd keeps them so."""


_packed: ContextVar[Sequence[int] | None] = ContextVar("packed", default=None)


@contextmanager
def packed(document_lengths: Sequence[int]) -> Iterator[None]:
    """Forward passes in here are given `document_lengths` (tokens of each document, in order) too: no mask is built
    where they say all that it would."""
    token = _packed.set(document_lengths)
    try:
        yield
    finally:
        _packed.reset(token)


_cudnn = False
"""No ContextVar: what a checkpoint computes again on a GPU runs in autograd's own thread."""


@contextmanager
def prefer_cudnn() -> Iterator[None]:
    """Long documents are attended to by cuDNN, one by one, in here: faster on Hopper than FlashAttention-2."""
    global _cudnn
    _cudnn = True
    try:
        yield
    finally:
        _cudnn = False


def document_mask(*sizes: Any, config: PreTrainedConfig, **options: Any) -> Tensor | None:
    """Transformers' own mask, [1, 1, tokens, tokens], where any document is longer than the model's window, and for
    generation. Otherwise None."""
    lengths, window = _packed.get(), getattr(config, "sliding_window", None)
    if lengths is not None and not exceeds(lengths, window):
        return None
    mask: Tensor | None = sdpa_mask(*sizes, config=config, **options)
    return mask


def exceeds(document_lengths: Sequence[int], window: int | None) -> bool:
    """Whether a document has tokens that are too far apart to see each other."""
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
    """Attention document by document where `document_lengths` says where they lie. Query, key and value: [1, heads,
    tokens, head size]; returns [1, tokens, heads, head size].

    One block mask over the whole sequence is as right, and costs 45% of a training step on a CPU. It is what remains
    for generation, and without FlashAttention for documents longer than the window."""
    query, key, value = as_multiplied(query.device.type, query, key, value)
    alone = document_lengths is not None and takes_cudnn(document_lengths, sliding_window)
    if document_lengths is not None and not alone and takes_varlen(query, value, options.get("dropout", 0.0)):
        return _varlen(query, key, value, document_lengths, sliding_window, options.get("scaling")), None
    if document_lengths is None or exceeds(document_lengths, sliding_window):
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    # On the CPU the bf16 kernel's backward takes up to twice as long as the fp32 one at the usual lengths.
    dtype = torch.float32 if query.device.type == "cpu" and query.dtype == torch.bfloat16 else query.dtype
    tensors = [torch.split(tensor.to(dtype), list(document_lengths), dim=2) for tensor in (query, key, value)]
    backends = sdpa_kernel(CUDNN_FIRST, set_priority=True) if alone else nullcontext()
    with torch.autocast(query.device.type, enabled=False), backends:
        outputs = [
            sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in zip(*tensors, strict=True)
        ]
    return torch.cat(outputs, dim=1).to(query.dtype), None


def takes_cudnn(document_lengths: Sequence[int], window: int | None) -> bool:
    """Whether these documents are better given to cuDNN one by one, within `prefer_cudnn`."""
    long = sum(document_lengths) >= LONG * len(document_lengths)
    return _cudnn and long and not exceeds(document_lengths, window)


def as_multiplied(device: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three as autocast multiplies matrices on a GPU: where the residual stream is in fp32 (method Full), rotary
    positions leave queries and keys in fp32, which FlashAttention does not take. On a CPU they stay as they are."""
    if device == "cpu" or not torch.is_autocast_enabled(device):
        return query, key, value
    dtype = torch.get_autocast_dtype(device)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def takes_varlen(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether FlashAttention takes these: in half precision, on an NVIDIA GPU of Ampere or newer."""
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
    """All documents in one launch of FlashAttention."""
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(query.device, non_blocking=True)
    # From [1, heads, tokens, size] to [tokens, heads, size].
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    grouped, options = q.shape[1] != k.shape[1], dict[str, Any]()
    if TAKES_GROUPS:
        options["enable_gqa"] = grouped
    elif grouped:
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
    output = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        max(lengths),
        max(lengths),
        scale=scaling,
        # Tokens seen before and after one's own; Transformers counts one's own in.
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )
    assert isinstance(output, Tensor)  # more comes only where it is asked for
    return output[None]


AttentionInterface.register(NAME, per_document_attention)
# An attention function under a new name gets no mask at all unless a mask function of that name is there too.
AttentionMaskInterface.register(NAME, document_mask)


def use_document_attention(model: PreTrainedModel) -> None:
    """Switches a model that Transformers runs on SDPA to `per_document_attention`; leaves others on what they need,
    where Transformers itself tells packed documents apart by their restarting position_ids."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # SDPA cannot cap scores. Transformers 5.23 knows that; 5.17 runs Gemma 2 on it, silently without the cap.
        model.set_attn_implementation("eager")
    layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if model.config._attn_implementation == "sdpa" and layers <= {"full_attention", "sliding_attention"}:
        model.set_attn_implementation(NAME)
