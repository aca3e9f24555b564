"""Packed documents see only themselves, in every kind of attention we meet."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
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

from finetune_api.reasons import FailureReason
from finetune_trainer import attention
from finetune_trainer.attention import prove_isolation
from finetune_trainer.batches import micro_batch
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.loss import token_losses
from tests.unit.finetune_trainer.tiny import VOCABULARY, examples, prepared_model, tiny_llama

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def gemma2() -> PreTrainedModel:
    """Soft-capped logits, which only eager attention computes; every second layer has a window of 16 tokens."""
    config = Gemma2Config(**SIZES, sliding_window=16, query_pre_attn_scalar=8)
    return prepared_model(Gemma2ForCausalLM(config), torch.float64)


def gemma3() -> PreTrainedModel:
    """Layers with a window of 16 tokens and layers without, by turns, each kind with rotations of its own."""
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
def test_packed_rows_give_the_losses_they_give_alone(family: Family) -> None:
    model, rows = family(), examples([24, 7, 40, 12])
    packed = token_losses(model, micro_batch(rows, model.device))
    alone = [token_losses(model, micro_batch([row], model.device)) for row in rows]
    tolerance = 1e-6 if family is gemma2 else 1e-10  # eager attention takes its softmax in fp32
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_isolation_is_proven_where_it_holds(family: Family) -> None:
    prove_isolation(family())


def test_a_model_whose_state_runs_on_is_refused() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8))
    with pytest.raises(TrainerFailure, match="change each other") as caught:
        prove_isolation(prepared_model(mamba, torch.float32))
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_attention_that_mixes_documents_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(torch.float32)
    monkeypatch.setattr(torch, "split", lambda tensor, lengths, dim: [tensor])
    with pytest.raises(TrainerFailure, match="change each other"):
        prove_isolation(model)


def test_document_by_document_equals_one_block_mask() -> None:
    per_document, block_mask = tiny_llama(), tiny_llama()
    block_mask.set_attn_implementation("sdpa")
    batch = micro_batch(examples([24, 7, 40]), per_document.device)
    assert per_document.config._attn_implementation == attention.NAME
    torch.testing.assert_close(token_losses(per_document, batch), token_losses(block_mask, batch), rtol=0, atol=1e-10)
