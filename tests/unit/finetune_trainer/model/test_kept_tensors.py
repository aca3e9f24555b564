"""Autograd keeps as many bytes for the backward pass as sizing predicts, in every family."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetune_api.spec.method import Method
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.layers.attention import use_document_attention
from finetune_trainer.model.layers.experts import use_experts
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.trainable import attach_lora
from finetune_trainer.sizing import device, memory
from finetune_trainer.sizing.model_shape import ModelShape, model_shape
from tests.unit.finetune_trainer.small_runs import VOCABULARY, example, fresh_accelerator

TOKENS = 256
LAYERS = (1, 3)
WIDE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": WIDE,
    "mistral": WIDE,
    "qwen2": WIDE,
    "qwen3": WIDE,
    "gemma": WIDE,
    "gemma2": WIDE | {"query_pre_attn_scalar": 16},
    "qwen3_moe": WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    "olmoe": {k: v for k, v in WIDE.items() if k != "head_dim"} | {"num_experts": 4, "num_experts_per_tok": 2},
    "mixtral": WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": WIDE
    | {"num_local_experts": 4, "num_experts_per_tok": 2}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "phi": {key: value for key, value in WIDE.items() if key != "head_dim"},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 64, "n_inner": 160, "n_head": 4, "attn_pdrop": 0, "resid_pdrop": 0},
}


def build(family: str, layers: int, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, num_hidden_layers=layers, **FAMILIES[family])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    use_document_attention(model)
    use_experts(model)
    return model


def shape_of(model: PreTrainedModel) -> ModelShape:
    return model_shape(model.config.to_dict(), {name: tuple(w.shape) for name, w in model.state_dict().items()})


def kept(model: nn.Module, precision: str = "bf16") -> int:
    """Bytes that autograd keeps of one micro-batch's forward pass, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        return tensor

    accelerator = fresh_accelerator(precision)
    batch = micro_batch([example(TOKENS // 2, 4, seed) for seed in range(2)], accelerator.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), accelerator.autocast():
        loss = token_losses(model.train(), batch).sum()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    del loss
    return sum(size for place, size in storages.items() if place not in parameters)


def per_layer(families: Iterator[nn.Module], precision: str = "bf16") -> float:
    """Bytes that each additional layer adds."""
    few, many = (kept(model, precision) for model in families)
    return (many - few) / (LAYERS[1] - LAYERS[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_as_many_bytes_as_sizing_predicts_for_lora(family: str) -> None:
    models = (build(family, layers, torch.bfloat16).requires_grad_(False) for layers in LAYERS)
    shape = shape_of(build(family, LAYERS[0], torch.bfloat16))
    measured = per_layer(attach_lora(model, Method(), 0) for model in models)
    copies = 2 * memory.adapter_parameters(shape, memory.Setup()) / shape.layers
    predicted = memory.layer_activations(shape, memory.Setup(), TOKENS, device.CPU) + copies
    assert predicted == pytest.approx(measured, rel=0.08)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_as_many_bytes_as_sizing_predicts_for_qlora_in_fp32(family: str) -> None:
    """The test uses a base model in fp32. A 4-bit base model keeps as little, because it dequantizes its matrices again
    in the backward pass."""
    models = (build(family, layers, torch.float32).requires_grad_(False) for layers in LAYERS)
    shape = shape_of(build(family, LAYERS[0], torch.float32))
    measured = per_layer((attach_lora(model, Method(), 0) for model in models), "no")
    predicted = memory.layer_activations(shape, memory.Setup("QLoRA", float32=True), TOKENS, device.CPU)
    assert predicted == pytest.approx(measured, rel=0.08)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "qwen3_moe"])
def test_a_layer_keeps_as_many_bytes_as_sizing_predicts_for_full(family: str) -> None:
    full = memory.Setup("Full")
    shape = shape_of(build(family, LAYERS[0], torch.float32))
    measured = per_layer(build(family, layers, torch.float32) for layers in LAYERS)
    copies = 2 * shape.linear_parameters / shape.layers
    predicted = memory.layer_activations(shape, full, TOKENS, device.CPU) + copies
    assert predicted == pytest.approx(measured, rel=0.12)
