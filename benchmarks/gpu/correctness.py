"""Checks the results of the GPU with a small model: bf16 on the GPU is compared with fp32 on the CPU, and each
optimized computation with the plain one."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Figure
from finetune_api.spec.method import Method, MethodType
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.isolation import sharing
from finetune_trainer.model.layers.attention import TAKES_GROUPS, per_document_attention, use_document_attention
from finetune_trainer.model.layers.document_dropout import DocumentDropout, document_masks
from finetune_trainer.model.parameters.trainable import (
    attach_lora,
    make_trainable,
    trainable_parameters,
    use_gradient_checkpointing,
)
from finetune_trainer.training.loop import accumulate_gradients

LENGTHS = (300, 77, 512, 130)
VOCABULARY, HEADS, GROUPS, HEAD = 1024, 8, 2, 64
CPU = torch.device("cpu")
ROUNDING = 2e-2
"""Largest accepted distance from fp32, as a share, of one operation in bf16. Its rounding error is up to 4e-3."""
DEEP = 5e-2
"""Largest accepted distance from fp32 after a forward and backward pass. A wrong result differs by tens of percent."""
SAME = 5e-3
"""Largest accepted distance between two runs of the same operations, whose sums can have another order."""


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields the figures of every check."""
    for check in (_against_fp32, _full, _packing, _attention, _recomputation, _dropout, _fused_lora):
        yield from check(bench)


def rows() -> list[Example]:
    """Returns rows of random tokens with different lengths. The last two thirds of each row are trained on."""
    draw = np.random.default_rng(0)
    return [
        Example(
            input_ids=draw.integers(0, VOCABULARY, length).astype(np.int32),
            supervised=np.arange(length) >= length // 3,
            prompt_length=length // 3,
            messages=(),
            place=f"random:{length}",
        )
        for length in LENGTHS
    ]


def small(device: torch.device, dtype: torch.dtype, dropout: float = 0.0) -> PeftModel:
    """Returns a Llama with grouped queries and an adapter that changes its results. The weights are always the same and
    are rounded to bf16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
    )
    base = LlamaForCausalLM(config).to(torch.bfloat16).to(dtype).requires_grad_(False)
    use_document_attention(base)
    model = attach_lora(base, Method.model_validate({"lora": {"dropout": dropout}}), seed=0)
    draw = torch.Generator().manual_seed(1)
    for parameter in trainable_parameters(model):
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=draw)
    whole: PeftModel = model.to(device)
    return whole


def gradients(model: nn.Module) -> Tensor:
    """Returns the gradients of all trained parameters as one vector in fp32 on the CPU. Removes them from the model."""
    found = [parameter.grad for parameter in trainable_parameters(model)]
    for parameter in trainable_parameters(model):
        parameter.grad = None
    return torch.cat([part.flatten().float().cpu() for part in found if part is not None])


def distance(one: Tensor, other: Tensor) -> float:
    """Returns the norm of the difference, as a share of the norm of `other`."""
    one, other = one.float().cpu(), other.float().cpu()
    return float((one - other).norm() / other.norm())


def check(what: str, found: float, most: float) -> Figure:
    """Returns the figure `found`, which is right if it is at most `most`."""
    return Figure(what, found, "", f"at most {most:g}", bool(found <= most))


def _step(bench: Bench, model: nn.Module, tokens: int = 2048, step: int = 0) -> tuple[float, Tensor]:
    loss = accumulate_gradients(model.train(), rows(), tokens, bench.accelerator, step=step)
    return loss, gradients(model)


def _against_fp32(bench: Bench) -> Iterator[Figure]:
    """Compares a step of the trainer in bf16 with plain Transformers in fp32 on the CPU (see `plain`)."""
    loss, gradient = _step(bench, small(bench.device, torch.bfloat16))
    expected, reference = plain(small(CPU, torch.float32), rows())
    yield check("loss from fp32 on the CPU", abs(loss / expected - 1), 1e-3)
    yield check("gradient from fp32 on the CPU", distance(gradient, reference), DEEP)


def _full(bench: Bench) -> Iterator[Figure]:
    """Compares a step of method Full, whose residual stream is in fp32, with plain Transformers on the CPU."""
    found, expected = (
        make_trainable(small(device, torch.float32).unload(), Method(), MethodType.FULL, seed=0)
        for device in (bench.device, CPU)
    )
    reference = plain(expected, rows())[1]
    yield check("Full, gradient from fp32 on the CPU", distance(_step(bench, found)[1], reference), DEEP)


def plain(model: Any, examples: Sequence[Example]) -> tuple[float, Tensor]:
    """Returns loss and gradient without any optimization: one row at a time, Transformers' attention, all logits."""
    (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation("sdpa")
    total = torch.zeros(())
    for row in examples:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        losses = F.cross_entropy(logits, ids[1:], reduction="none")
        total = total + losses[torch.from_numpy(row.supervised[1:])].sum()
    loss = total / sum(int(row.supervised[1:].sum()) for row in examples)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(model)


def _packing(bench: Bench) -> Iterator[Figure]:
    model = small(bench.device, torch.bfloat16)
    yield check("rows packed change each other", float(sharing(model).packed < inf), 0)
    (loss, gradient), (apart, alone) = _step(bench, model), _step(bench, model, tokens=1)
    yield check("rows packed against alone, loss", abs(loss / apart - 1), 1e-3)
    yield check("rows packed against alone, gradient", distance(gradient, alone), ROUNDING)


def _attention(bench: Bench) -> Iterator[Figure]:
    """Compares the attention and its gradients, also with grouped queries and a window, with masked attention in fp32
    on the CPU."""
    for what, groups, window in (
        ("attention", HEADS, None),
        ("attention, grouped queries", GROUPS, None),
        ("attention, grouped queries and a window", GROUPS, 100),
    ):
        expected = attend(CPU, torch.float32, groups, window, masked=True)
        found = attend(bench.device, torch.bfloat16, groups, window, masked=False)
        for name, one, other in zip(("result", "query", "key", "value"), found, expected, strict=True):
            kind = name if name == "result" else f"gradient of {name}"
            yield check(f"{what}, {kind}", distance(one, other), ROUNDING)

    if bench.device.type == "cuda" and not TAKES_GROUPS:
        yield _grouped_as_they_are(bench.device)


def _grouped_as_they_are(device: torch.device) -> Figure:
    """Tests if the `varlen_attn` of this PyTorch accepts grouped queries without repeated keys and values, although
    `attention.TAKES_GROUPS` is false."""
    draw = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(sum(LENGTHS), heads, HEAD, generator=draw, device=device).bfloat16().requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS)
    )
    ends = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=device)
    seen: list[Tensor] = []
    try:
        for times in (1, HEADS // GROUPS):
            k, v = (part.repeat_interleave(times, dim=1) for part in (key, value))
            longest = max(LENGTHS)
            result = varlen_attn(query, k, v, ends, ends, longest, longest, window_size=(-1, 0))
            assert isinstance(result, Tensor)
            seen.append(torch.autograd.grad(result.float().square().sum(), key)[0])
    except RuntimeError as error:
        return Figure("grouped queries without repeating", 0, "", f"refused: {str(error).splitlines()[0][:200]}")
    return Figure("grouped queries without repeating", distance(*seen), "", "gradient of key, from the repeated one's")


def attend(
    device: torch.device, dtype: torch.dtype, groups: int, window: int | None, masked: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the result of the attention and the gradients of query, key and value. `masked`: uses a mask over all
    documents instead of the trainer's attention."""
    draw, tokens = torch.Generator().manual_seed(0), sum(LENGTHS)
    query, key, value = (
        torch.randn(1, heads, tokens, HEAD, generator=draw).bfloat16().to(device, dtype).requires_grad_()
        for heads in (HEADS, groups, groups)
    )
    outer = torch.randn(1, tokens, HEADS, HEAD, generator=draw).bfloat16().to(device, dtype)
    documents = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    apart = torch.arange(tokens)[:, None] - torch.arange(tokens)
    mask = (documents[:, None] == documents) & (apart >= 0) & (apart < (window or tokens))
    if masked:
        k, v = (part.repeat_interleave(HEADS // groups, dim=1) for part in (key, value))
        result = F.scaled_dot_product_attention(query, k, v, attn_mask=mask[None, None]).transpose(1, 2)
    else:
        module = nn.Module()
        module.num_key_value_groups = HEADS // groups  # type: ignore[assignment]
        module.is_causal = True  # type: ignore[assignment]
        allowed = mask[None, None].to(device)
        scale = HEAD**-0.5
        result, _ = per_document_attention(module, query, key, value, allowed, LENGTHS, window, scaling=scale)
    of_query, of_key, of_value = torch.autograd.grad(result, (query, key, value), outer)
    return result.detach(), of_query, of_key, of_value


def _recomputation(bench: Bench) -> Iterator[Figure]:
    model = small(bench.device, torch.bfloat16)
    kept = _step(bench, model)[1]
    use_gradient_checkpointing(model, True)
    yield check("gradient with recomputation", distance(_step(bench, model)[1], kept), SAME)


def _dropout(bench: Bench) -> Iterator[Figure]:
    """Checks that the GPU has the dropout masks of the CPU, and that a recomputed activation has the same mask."""
    ones, masks = torch.ones(1, sum(LENGTHS), 96), []
    for device in (CPU, bench.device):
        layer = DocumentDropout(0.3, 5, "layer").train()
        with document_masks(micro_batch(rows(), device), seed=7, step=3):
            masks.append(layer(ones.to(device)).cpu())
    yield check("dropout, share of masks other than the CPU's", float((masks[0] != masks[1]).float().mean()), 0)
    model = small(bench.device, torch.bfloat16, dropout=0.1)
    kept = _step(bench, model, step=3)[1]
    use_gradient_checkpointing(model, True)
    yield check("dropout, gradient with recomputation", distance(_step(bench, model, step=3)[1], kept), SAME)
    use_gradient_checkpointing(model, False)
    apart = _step(bench, model, tokens=1, step=3)[1]
    yield check("dropout, gradient of rows packed against alone", distance(apart, kept), ROUNDING)


def _fused_lora(bench: Bench) -> Iterator[Figure]:
    """Checks that the fused products of LoRA are as close to fp32 as those of PEFT."""
    reference = plain(small(CPU, torch.float32), rows())[1]
    model = small(bench.device, torch.bfloat16)
    fused = _step(bench, model)[1]
    with patch("finetune_trainer.model.layers.fused_lora._is_fusible", lambda *_: False):  # PEFT computes all layers
        peft = _step(bench, model)[1]
    yield check("fused_lora, gradient from PEFT's", distance(fused, peft), DEEP)
    error = distance(peft, reference)
    yield check("fused_lora, gradient from fp32 beside PEFT's", distance(fused, reference) / error, 1.5)
