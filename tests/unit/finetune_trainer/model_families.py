"""A tiny model of random weights for each kind of architecture we prove: what is particular about it is in its text."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from tests.unit.finetune_trainer import small_runs
from tests.unit.finetune_trainer.small_runs import VOCABULARY

SIZES = {**small_runs.SIZES, "max_position_embeddings": 512, "pad_token_id": 0}
WITHOUT_MLP = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


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


def qwen3_moe() -> PreTrainedModel:
    """Four experts in each layer, of which a token passes two."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, head_dim=8, **experts, mlp_only_layers=[]))


def mixtral() -> PreTrainedModel:
    """Experts under other names in its files, and random noise before its router."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.1}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **experts))


def olmoe() -> PreTrainedModel:
    """As Qwen3-MoE, with norms over all heads together and other weights of the experts."""
    return OlmoeForCausalLM(OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, eos_token_id=3))


def gpt_oss() -> PreTrainedModel:
    """Experts the other way round, with biases and a capped gate; attention sinks; every second layer with a window."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    rotations = {"rope_type": "default", "rope_theta": 10000.0}
    return GptOssForCausalLM(GptOssConfig(**SIZES, head_dim=8, sliding_window=16, **experts, rope_parameters=rotations))


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
VISION |= {"image_size": 28, "patch_size": 14}


def gemma3() -> PreTrainedModel:
    """Reads images too. Every second layer has a window of 16 tokens; normalised queries and keys; tied."""
    text = {**SIZES, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
    text |= {"layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=1, image_token_index=300)
    return Gemma3ForConditionalGeneration(config)


def mistral3() -> PreTrainedModel:
    """Reads images too, with an output head of its own."""
    text = {**SIZES, "model_type": "mistral", "head_dim": 8}
    vision = {**VISION, "model_type": "pixtral"}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=300, tie_word_embeddings=False)
    )


QWEN_VISION = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "depth": 1, "num_heads": 4}
QWEN_VISION |= {"patch_size": 14}
QWEN_IMAGES = {"image_token_id": 300, "video_token_id": 301}
ROTATIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def qwen2_5_vl() -> PreTrainedModel:
    """Reads images too. A position has three numbers: time, height and width. Its files have other names for layers."""
    config = Qwen2_5_VLConfig(
        text_config={**SIZES, "rope_parameters": ROTATIONS, "bos_token_id": 1, "eos_token_id": 3},
        vision_config={**QWEN_VISION, "fullatt_block_indexes": [0]},
        **QWEN_IMAGES,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> PreTrainedModel:
    """As Qwen2.5-VL, with normalised queries and keys. Adds images to the results of its first layers too. Tied."""
    config = Qwen3VLConfig(
        text_config={**SIZES, "head_dim": 8, "rope_parameters": {**ROTATIONS, "mrope_interleaved": True}},
        vision_config={**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        tie_word_embeddings=True,
        **QWEN_IMAGES,
    )
    return Qwen3VLForConditionalGeneration(config)


LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}


def qwen3_5_with_images() -> PreTrainedModel:
    """Qwen 3.5 as it is published: it reads images too, and its rows would change each other in one sequence."""
    rotations = {**ROTATIONS, "partial_rotary_factor": 0.5, "mrope_interleaved": True}
    sizes = {**SIZES, "num_hidden_layers": 4, "head_dim": 8}
    config = Qwen3_5Config(
        text_config={**sizes, **LINEAR, "rope_parameters": rotations},
        vision_config={**QWEN_VISION, "num_position_embeddings": 16},
        **QWEN_IMAGES,
    )
    return Qwen3_5ForConditionalGeneration(config)


def falcon() -> PreTrainedModel:
    """Takes positions for its rotations only: its mask is of the whole sequence. Queries share one key."""
    return FalconForCausalLM(FalconConfig(**WITHOUT_MLP, alibi=False, bos_token_id=1, eos_token_id=3))


def bloom() -> PreTrainedModel:
    """No positions at all: attention falls with the distance."""
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))


def mpt() -> PreTrainedModel:
    """As Bloom, under names of its own: d_model, n_layers, n_heads."""
    return MptForCausalLM(MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=512))


def qwen3_5() -> PreTrainedModel:
    """Three layers of linear attention, whose state runs along the sequence, to one that attends."""
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SIZES | {"num_hidden_layers": 4}, head_dim=8, **LINEAR))


def falcon_h1() -> PreTrainedModel:
    """Mamba-2 and attention side by side in each layer. Takes no adapter on Mamba's out_proj."""
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
    return FalconH1ForCausalLM(FalconH1Config(**SIZES, head_dim=8, **mamba, mamba_chunk_size=8))


def recurrent_gemma() -> PreTrainedModel:
    """Two recurrent layers to one that attends to the last 16 tokens; reads padding as text."""
    sizes = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16}
    kinds = ["recurrent", "recurrent", "attention"]
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**sizes, block_types=kinds))


def mamba() -> PreTrainedModel:
    """No attention. Takes no adapter on dt_proj and out_proj, whose weights it reads past the layers."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, **sizes))


def rwkv() -> PreTrainedModel:
    """No attention; would halve the second layer's weights whenever it is not training. Reads padding as text."""
    sizes = {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "rescale_every": 1}
    return RwkvForCausalLM(RwkvConfig(vocab_size=VOCABULARY, **sizes))


Family = Callable[[], PreTrainedModel]
FAMILIES: list[Family] = [llama, llama_tied, mistral, gemma, gemma2, qwen2, qwen3, phi, phi3, cohere, gpt2]
EXPERTS: list[Family] = [qwen3_moe, olmoe, mixtral, gpt_oss]
"""Those with experts."""
COMPOSITE: list[Family] = [gemma3, mistral3, qwen2_5_vl, qwen3_vl, qwen3_5_with_images]
"""Those that read images too."""
ALONE: list[Family] = [falcon, bloom, mpt, qwen3_5, falcon_h1, recurrent_gemma, mamba, rwkv]
"""Those whose rows would change each other in one sequence."""


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
