"""Mixture-of-experts layers in config.json and in the headers of the weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from finetune_api.spec.method import MethodType
from finetune_trainer.base.experts import EXPERTS as SETTINGS
from finetune_trainer.base.experts import (
    adaptable,
    experts_misfit,
    experts_problem,
    has_experts,
    stack_of,
    stacked,
)
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.sizing.model_shape import Sizes, model_shape
from tests.unit.finetune_trainer.model_families import EXPERTS, Family, save_family

NAME = r"layers\.0\.(mlp|block_sparse_moe)\.(experts\.[0-3]\.|experts\.|)(gate_proj|w1|w2|up_proj|gate)(\.weight)?"
STACKS: Sizes = {
    "model.embed_tokens.weight": (320, 32),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.mlp.gate.weight": (4, 32),
    "model.layers.0.mlp.experts.gate_up_proj": (4, 32, 32),
    "model.layers.0.mlp.experts.gate_up_proj_bias": (4, 32),
    "model.layers.0.mlp.experts.down_proj": (4, 32, 16),
}


@pytest.mark.parametrize(
    "config",
    [
        {"num_local_experts": 8},  # Mixtral
        {"num_experts": 60},  # Qwen2 MoE
        {"n_routed_experts": 256},  # DeepSeek
        {"moe_num_experts": 64},  # Ernie 4.5
        {"moe_num_experts": [64, 32]},  # Ernie 4.5 VL: for text and for images
        {"ffn_config": {"moe_num_experts": 16}},  # DBRX
        {"text_config": {"num_experts": 256}},  # Qwen3.5 MoE
        {"thinker_config": {"text_config": {"num_experts": 128}}},  # Qwen3 Omni
        {"is_moe": True, "num_experts": 16384},  # Doge
        {"text_config": {"enable_moe_block": True, "num_experts": 128}},  # Gemma 4
    ],
)
def test_experts_are_found_whatever_they_are_called_and_wherever_they_are_said(config: dict[str, Any]) -> None:
    assert has_experts(config)


@pytest.mark.parametrize(
    "config",
    [
        *({key: count} for key in SETTINGS for count in (None, 0, 1, True, [1, 1])),
        {"num_experts_per_tok": 2, "moe_intermediate_size": 512},
        {"text_config": {"num_local_experts": 0}},
        {"is_moe": False, "num_experts": 16384},
        {"text_config": {"enable_moe_block": False, "num_experts": 128}},
    ],
)
def test_a_dense_model_may_have_the_settings_of_its_kin_with_experts(config: dict[str, Any]) -> None:
    assert not has_experts(config)


def test_no_causal_model_of_transformers_has_its_experts_under_a_name_we_do_not_know() -> None:
    unknown, without_defaults = set(), set()
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            settings = CONFIG_MAPPING[kind]().to_dict()
        except StrictDataclassError:
            without_defaults.add(kind)
            continue
        if names_experts(settings) and not has_experts(settings):
            unknown.add(kind)
    assert unknown == {"doge"}, "whose experts are switched off"
    assert without_defaults <= {"gemma4_assistant", "musicgen", "musicgen_melody"}, "made of other models"


def names_experts(settings: dict[Any, Any]) -> bool:
    """Whether anything that says experts, and not how many of them a token has or shares, is more than one."""
    return any(
        names_experts(value)
        if isinstance(value, dict)
        else re.search("(?<!shared_)experts(?!_per_tok)", str(key)) and isinstance(value, int) and value > 1
        for key, value in settings.items()
    )


def headers(folder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("family", EXPERTS, ids=lambda family: family.__name__)
def test_experts_have_the_names_and_shapes_that_transformers_has_in_memory(family: Family, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "model")
    model = load_model(folder, MethodType.LORA, torch.device("cpu"))
    assert stacked(headers(folder)) == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_a_dense_model_keeps_its_names_and_shapes() -> None:
    sizes = {"model.layers.0.mlp.gate_proj.weight": (64, 32), "model.layers.0.experts_norm.weight": (32,)}
    assert stacked(sizes) == sizes
    assert adaptable(sizes) == {"model.layers.0.mlp.gate_proj"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "qwen3_moe"}, None),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [], "decoder_sparse_step": 1}, None),
        ({"model_type": "deepseek_v3"}, "only in gpt_oss, mixtral, olmoe, qwen3_moe"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "only in some of its layers (mlp_only_layers)"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "only in some of its layers (decoder_sparse_step)"),
    ],
)
def test_only_experts_that_the_tests_prove_are_tuned(config: dict[str, Any], said: str | None) -> None:
    problem = experts_problem(config)
    assert problem is None if said is None else said in (problem or "")


def test_a_number_of_experts_that_is_not_that_of_config_is_told() -> None:
    assert experts_misfit({"num_local_experts": 4}, STACKS) is None
    assert experts_misfit({}, {"model.layers.0.mlp.gate_proj.weight": (8, 8)}) is None
    said = "config.json has 8 experts, but model.layers.0.mlp.experts.gate_up_proj has 4"
    assert experts_misfit({"num_experts": 8}, STACKS) == said


@given(st.dictionaries(st.from_regex(NAME, fullmatch=True), st.lists(st.integers(0, 4), max_size=4)))
def test_headers_of_any_shape_are_read(sizes: dict[str, list[int]]) -> None:
    found = stacked(sizes)
    assert adaptable(found) <= {name.removesuffix(".weight") for name in found}
    experts_misfit({"num_experts": 4}, found)


def test_routers_and_biases_of_experts_get_no_adapter() -> None:
    assert adaptable(STACKS) == {
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    }


def test_memory_counts_all_experts_and_time_those_that_a_token_passes() -> None:
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 320}
    shape = model_shape(config | {"num_experts_per_tok": 2, "intermediate_size": 999}, STACKS)
    assert shape.routed == 2
    assert shape.intermediate == 2 * 16, "inside both experts of a token"
    assert shape.linear_parameters == 32 * 32 + 4 * (32 * 32 + 32 * 16)
    assert shape.passed_parameters == 32 * 32 + 2 * (32 * 32 + 32 * 16)
    assert [m.count for m in shape.targeted(["gate_up_proj"])] == [4]


@pytest.mark.parametrize(
    ("layers", "parameters", "found"),
    [
        ({"mlp.experts", "mlp.experts.base_layer"}, ["gate_up_proj", "down_proj"], {"gate_up_proj", "down_proj"}),
        ({"mlp.experts"}, ["mlp.experts.gate_up_proj"], {"gate_up_proj"}),
        ({"mlp.experts"}, ["down_proj"], {"down_proj"}),
    ],
)
def test_peft_names_the_adapters_of_experts_by_their_nesting(
    layers: set[str], parameters: list[str], found: set[str]
) -> None:
    assert {stack_of(layer, layers, parameters) for layer in layers} == {f"mlp.experts.{stack}" for stack in found}
    assert stack_of("self_attn.q_proj", layers, parameters) == "self_attn.q_proj"
