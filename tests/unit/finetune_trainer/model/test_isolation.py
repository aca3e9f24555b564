"""Tests on the model which rows can share a forward pass."""

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.isolation import Sharing, describe, leak, sharing
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.trainable import attach_lora
from finetune_trainer.model.row_losses import row_losses
from finetune_trainer.pod.failure import TrainerFailure
from tests.unit.finetune_trainer import small_runs
from tests.unit.finetune_trainer.model.layers.test_attention import FAMILIES, Family
from tests.unit.finetune_trainer.small_runs import VOCABULARY, examples, prepared_model, tiny_llama

ROWS = examples([20, 24, 60, 90, 28])


def mamba2() -> PreTrainedModel:
    """A recurrent state that ignores masked tokens."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}
    config = Mamba2Config(vocab_size=VOCABULARY, **sizes, chunk_size=8)
    return prepared_model(Mamba2ForCausalLM(config), torch.float32)


def rwkv() -> PreTrainedModel:
    """A recurrent state that reads masked tokens too."""
    config = RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)
    return prepared_model(RwkvForCausalLM(config), torch.float32)


def bloom() -> PreTrainedModel:
    """Attention by distance, without positions."""
    return prepared_model(BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_head=4)), torch.float32)


def longrope() -> PreTrainedModel:
    """Phi-3 with a long context: a position beyond 32 changes the rotary positions of all tokens of the call."""
    turning = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    turning |= {
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 32.0],
        "original_max_position_embeddings": 32,
    }
    sizes: dict[str, Any] = {**small_runs.SIZES, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 3}
    config = Phi3Config(**sizes, original_max_position_embeddings=32, rope_parameters=turning)
    return prepared_model(Phi3ForCausalLM(config), torch.float64)


def dynamic() -> PreTrainedModel:
    """Rotary positions that depend on the longest position so far, from 32 on."""
    turning = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = LlamaConfig(**small_runs.SIZES, max_position_embeddings=32, rope_parameters=turning)
    return prepared_model(LlamaForCausalLM(config), torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_share_a_sequence_if_they_do_not_change_each_other(family: Family) -> None:
    # In fp64 eager attention gives nan for padding, because its softmax is in fp32.
    assert sharing(family().float()) == Sharing(packed=inf, padded=inf)
    assert describe(Sharing()) == ""


@pytest.mark.parametrize(("family", "padded"), [(mamba2, inf), (bloom, inf), (rwkv, 0)])
def test_rows_that_change_each_other_are_processed_alone(family: Family, padded: float) -> None:
    model = family()
    assert leak(model) > 0.1
    assert sharing(model) == Sharing(packed=0, padded=padded)
    assert "change each other's results, so each row is processed alone." in describe(sharing(model))
    assert ("answered one by one" in describe(sharing(model))) == (not padded)


@pytest.mark.parametrize("family", [mamba2, bloom, rwkv, longrope, dynamic])
def test_a_rows_loss_does_not_depend_on_earlier_rows(family: Callable[[], PreTrainedModel]) -> None:
    """`family` creates the same model at each call."""
    with torch.no_grad():
        fresh = []
        for row in ROWS:
            torch.manual_seed(0)
            model = family()
            fresh.append(token_losses(model, micro_batch([row], model.device)).sum().item())
        torch.manual_seed(0)
        model = family()
        for tokens in (4096, 64):
            losses, _ = row_losses(model, ROWS, tokens)
            np.testing.assert_allclose(losses, fresh, rtol=1e-5)


@pytest.mark.parametrize("family", [longrope, dynamic])
def test_rows_on_both_sides_of_the_rotations_threshold_would_change_each_other(family: Family) -> None:
    model = family()
    assert sharing(model) == Sharing(packed=32, padded=32)
    assert "a row of more than 32 tokens changes the rotary positions" in describe(sharing(model))
    with torch.no_grad():
        packed = token_losses(model, micro_batch(ROWS, model.device)).sum()
        alone, _ = row_losses(model, ROWS, 4096)
    assert abs(packed - alone.sum()) > 0.1, "a test that can fail"


def test_attention_that_mixes_documents_is_replaced_by_a_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is the case for a model that does not pass document_lengths on to its layers."""
    model = tiny_llama(torch.float32)
    monkeypatch.setattr(torch, "split", lambda tensor, lengths, dim: [tensor])
    assert leak(model) > 0.1
    assert sharing(model) == Sharing()
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_keeps_a_state_between_texts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = tiny_llama(torch.float32), []
    embed = model.get_input_embeddings().forward

    def embed_with_memory(tokens: torch.Tensor) -> torch.Tensor:
        read.append(tokens.sum())
        return embed(tokens) * (1 + 0.1 * len(read))

    monkeypatch.setattr(model.get_input_embeddings(), "forward", embed_with_memory)
    with pytest.raises(TrainerFailure, match="cannot be trained or measured independently") as caught:
        sharing(model)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_sharing_is_tested_once_with_or_without_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(torch.float32)
    found = sharing(model)
    monkeypatch.setattr(type(model), "forward", None)
    tuned = attach_lora(model, Method(), seed=0)
    assert isinstance(tuned, PeftModel)
    assert sharing(tuned) is found
