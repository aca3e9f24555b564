"""Packed documents see only themselves, in every supported kind of attention."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, varlen
from torch.utils.checkpoint import checkpoint
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.layers import attention
from finetune_trainer.model.layers.attention import per_document_attention
from finetune_trainer.model.loss import frozen_head, token_losses
from tests.unit.finetune_trainer import small_runs
from tests.unit.finetune_trainer.small_runs import VOCABULARY, examples, prepared_model, tiny_llama

SIZES = {**small_runs.SIZES, "head_dim": 8, "pad_token_id": 0}


def gemma2() -> PreTrainedModel:
    """Soft-capped logits, which only eager attention computes; every second layer has a window of 16 tokens."""
    config = Gemma2Config(**SIZES, sliding_window=16, query_pre_attn_scalar=8)
    return prepared_model(Gemma2ForCausalLM(config), torch.float64)


def gemma3() -> PreTrainedModel:
    """Alternating layers with and without a window of 16 tokens. Each kind has its own rotary positions."""
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SIZES, sliding_window=16, layer_types=kinds, query_pre_attn_scalar=8)
    return prepared_model(Gemma3ForCausalLM(config), torch.float64)


def mistral() -> PreTrainedModel:
    """Every layer has a window of 16 tokens, shorter than some of the rows."""
    return prepared_model(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)), torch.float64)


def phi3() -> PreTrainedModel:
    """Query, key and value in one projection, gate and up in another."""
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    return prepared_model(Phi3ForCausalLM(Phi3Config(**sizes)), torch.float64)


def qwen2() -> PreTrainedModel:
    """Projections with a bias, output head tied to the embedding."""
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    return prepared_model(Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True)), torch.float64)


def qwen3() -> PreTrainedModel:
    """Normalised queries and keys."""
    return prepared_model(Qwen3ForCausalLM(Qwen3Config(**SIZES)), torch.float64)


def gpt2() -> PreTrainedModel:
    """Learned positions, and layers that take arguments by name."""
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    return prepared_model(GPT2LMHeadModel(config), torch.float64)


Family = Callable[[], PreTrainedModel]
FAMILIES: list[Family] = [tiny_llama, qwen2, qwen3, mistral, gemma2, gemma3, phi3, gpt2]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_rows_have_the_same_losses_as_alone(family: Family) -> None:
    model, rows = family(), examples([24, 7, 40, 12])
    packed = token_losses(model, micro_batch(rows, model.device))
    alone = [token_losses(model, micro_batch([row], model.device)) for row in rows]
    tolerance = 1e-6 if family is gemma2 else 1e-10  # eager attention takes its softmax in fp32
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=tolerance)


def test_document_by_document_equals_one_block_mask() -> None:
    per_document, block_mask = tiny_llama(), tiny_llama()
    block_mask.set_attn_implementation("sdpa")
    batch = micro_batch(examples([24, 7, 40]), per_document.device)
    assert per_document.config._attn_implementation == attention.NAME
    torch.testing.assert_close(token_losses(per_document, batch), token_losses(block_mask, batch), rtol=0, atol=1e-10)


@torch.no_grad()
def test_no_mask_is_built_if_attention_uses_document_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    own_mask = attention.sdpa_mask
    monkeypatch.setattr(
        attention, "sdpa_mask", lambda *sizes, **options: built.append(1) or own_mask(*sizes, **options)
    )
    within, beyond = examples([14, 7, 16]), examples([14, 7, 17])
    for model in (tiny_llama(), mistral()):
        frozen_head(model)  # `sharing` runs the model once, outside of any batch
        built.clear()
        token_losses(model, micro_batch(within, model.device))
        assert not built
    token_losses(model, micro_batch(beyond, model.device))
    assert len(built) == 1, "a document is longer than the window"
    tiny_llama().generate(torch.ones(2, 3, dtype=torch.long), max_new_tokens=2, pad_token_id=0)
    assert len(built) > 1, "generation has no document lengths"


def test_on_a_gpu_attention_gets_tensors_in_autocasts_dtype() -> None:
    mixed = (torch.ones(2), torch.ones(2), torch.ones(2).bfloat16())
    assert attention.as_multiplied("cuda", *mixed) == mixed, "QLoRA may compute in fp32"
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.as_multiplied("cpu", *mixed) == mixed
    # The tests have no GPU. This is what torch.autocast does on one.
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        assert {tensor.dtype for tensor in attention.as_multiplied("cuda", *mixed)} == {torch.bfloat16}
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("window", [None, 8])
def test_flash_attention_is_called_with_the_same_visibility_as_the_block_mask(
    monkeypatch: pytest.MonkeyPatch, window: int | None, grouped: bool
) -> None:
    """Runs all code except the kernel, which needs a GPU. A loop over documents replaces the kernel. `grouped`: whether
    the kernel supports grouped queries."""
    asked: dict[str, Any] = {}

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, starts: Tensor, _: Tensor, longest: int, __: int, **options: Any
    ) -> Tensor:
        asked.update(options, starts=starts.tolist(), longest=longest)
        left, parts = options["window_size"][0], []
        for start, end in pairwise(starts.tolist()):
            size = end - start
            apart = torch.arange(size)[:, None] - torch.arange(size)
            seen = (apart >= 0) & (apart <= (left if left >= 0 else size))
            document = [tensor[start:end].transpose(0, 1) for tensor in (q, k, v)]
            assert grouped or q.shape == k.shape == v.shape
            gqa = {"enable_gqa": options["enable_gqa"]} if grouped else {}
            part = torch.nn.functional.scaled_dot_product_attention(
                *document, attn_mask=seen, scale=options["scale"], **gqa
            )
            parts.append(part.transpose(0, 1))
        return torch.cat(parts)

    lengths = (24, 7, 12)
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 43, 8, generator=random) for heads in (4, 2, 2))
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    positions = torch.cat([torch.arange(length) for length in lengths])
    documents = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    apart = positions[:, None] - positions
    mask = (documents[:, None] == documents) & (apart >= 0) & (apart < (window or 43))
    expected, _ = attention.sdpa_attention_forward(module, query, key, value, mask[None, None], scaling=0.3)
    monkeypatch.setattr(attention, "takes_varlen", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "TAKES_GROUPS", grouped)
    output, _ = per_document_attention(module, query, key, value, None, lengths, window, scaling=0.3)
    torch.testing.assert_close(output, expected)
    assert asked["starts"] == [0, 24, 31, 43]
    assert asked["longest"] == 24


def test_cudnn_processes_only_long_documents_within_the_window_and_only_on_request() -> None:
    assert not attention.takes_cudnn([4096], None)
    with attention.prefer_cudnn():
        assert attention.takes_cudnn([4096, 2048], None)
        assert attention.takes_cudnn([4096], 4096)
        assert not attention.takes_cudnn([4096], 2048)
        assert not attention.takes_cudnn([2048, *[16] * 100], None)
    assert not attention.takes_cudnn([4096], None)


@pytest.mark.skipif(not hasattr(varlen, "_select_backend"), reason="this PyTorch has one kernel for packed documents")
def test_documents_in_one_launch_use_flash_attention_also_if_recomputed_and_cudnn_only_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch itself chooses the kernel here, on a GPU that it believes to support cuDNN."""
    monkeypatch.setattr(varlen, "_cudnn_rejection_reasons", lambda *_: [])
    monkeypatch.setattr(attention, "takes_varlen", lambda *_: True)
    chosen: list[SDPBackend] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, ends: Tensor, longest: int, *_: Any, **__: Any) -> Any:
        chosen.append(SDPBackend(varlen._select_backend(q, k, v, starts, ends, longest, [-1, 0])))
        return q * v

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    query = torch.ones(1, 2, 43, 8, requires_grad=True)

    def layer(tensor: Tensor) -> Tensor:
        return per_document_attention(torch.nn.Module(), tensor, query, query, None, (24, 7, 12))[0]

    kernel(query, query, query, torch.ones(1), torch.ones(1), 24)
    assert chosen.pop() == SDPBackend.CUDNN_ATTENTION, "the default of PyTorch"
    checkpoint(layer, query, use_reentrant=False).sum().backward()
    assert chosen == [SDPBackend.FLASH_ATTENTION] * 2
    with attention.prefer_cudnn():
        layer(query)
        monkeypatch.setattr(varlen, "_cudnn_rejection_reasons", lambda *_: ["a window"])
        layer(query)
    assert chosen[2:] == [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
