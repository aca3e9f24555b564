"""A tiny model of random weights for each kind of architecture we prove: what is particular about it is in its text."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.unit.finetune_trainer import tiny
from tests.unit.finetune_trainer.tiny import VOCABULARY

SIZES = {**tiny.SIZES, "max_position_embeddings": 512, "pad_token_id": 0}


def llama() -> PreTrainedModel:
    """Grouped queries, an output head of its own."""
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))


def llama_tied() -> PreTrainedModel:
    """The embedding is the output head, as in SmolLM2."""
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))


def mistral() -> PreTrainedModel:
    """Every layer sees the last 16 tokens only, fewer than some rows have."""
    return MistralForCausalLM(MistralConfig(**SIZES, head_dim=8, sliding_window=16))


def gemma() -> PreTrainedModel:
    """Scaled embeddings, norms that add one to their weights, tied."""
    return GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8))


def gemma2() -> PreTrainedModel:
    """Soft-capped attention and logits, every second layer with a window of 16 tokens, tied."""
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=16, query_pre_attn_scalar=8))


def qwen2() -> PreTrainedModel:
    """Biases on queries, keys and values; tied, as the small ones are."""
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))


def qwen3() -> PreTrainedModel:
    """Normalised queries and keys."""
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))


def phi() -> PreTrainedModel:
    """Rotates a part of each head; attention and MLP side by side; LayerNorms and biases everywhere."""
    return PhiForCausalLM(PhiConfig(**SIZES, partial_rotary_factor=0.5))


def phi3() -> PreTrainedModel:
    """Queries, keys and values in one matrix, gate and up in another."""
    return Phi3ForCausalLM(Phi3Config(**SIZES, eos_token_id=3, bos_token_id=1))


def cohere() -> PreTrainedModel:
    """Logits scaled after the output head."""
    return CohereForCausalLM(CohereConfig(**SIZES, eos_token_id=3, bos_token_id=1, logit_scale=0.25))


def gpt2() -> PreTrainedModel:
    """Matrices the other way round (Conv1D), learned positions, tied."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512))


Family = Callable[[], PreTrainedModel]
FAMILIES: list[Family] = [llama, llama_tied, mistral, gemma, gemma2, qwen2, qwen3, phi, phi3, cohere, gpt2]


def save_family(family: Family, folder: Path) -> Path:
    """Saves the family's model in bf16, as it is downloaded. Its weights are spread wider than at initialisation, so
    that what is wrong shows."""
    torch.manual_seed(0)
    model = family()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
