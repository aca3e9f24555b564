"""Models that read images too: what of them is tuned, and what preflight says of the others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Lora, MethodType
from finetune_trainer.base.base_model import inspect_model
from finetune_trainer.base.chosen_modules import require_modules
from finetune_trainer.base.composite import PROCESSOR, is_tuned, language_model
from finetune_trainer.base.supported import require_supported
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle, save_tokenizer
from tests.unit.finetune_trainer.model_families import (
    COMPOSITE,
    Family,
    gemma3,
    qwen2_5_vl,
    qwen3_5_with_images,
    save_family,
)


@pytest.mark.parametrize("family", COMPOSITE, ids=lambda family: family.__name__)
def test_preflight_sizes_the_language_model_and_counts_the_rest_as_frozen(
    make_bundle: MakeBundle, family: Family, tmp_path: Path
) -> None:
    folder = save_family(family, tmp_path / "model")
    save_tokenizer(folder)
    bundle = make_bundle(model={"uri": str(folder)})
    found = inspect_model(open_storage(bundle), str(folder), tmp_path / "scratch")
    model = load_model(folder, MethodType.LORA, torch.device("cpu"))
    weights = dict(model.named_parameters())
    assert found.sizes == {name: tuple(weight.shape) for name, weight in weights.items() if is_tuned(name)}
    layers = model.config.get_text_config().num_hidden_layers
    others = sum(weight.numel() for name, weight in weights.items() if not is_tuned(name))
    assert found.shape.other_parameters == others > 0
    assert found.shape.parameters == sum(weight.numel() for weight in weights.values()) - others
    assert (found.shape.hidden, found.shape.layers, found.context) == (32, layers, 512)
    require_modules(Lora(target_modules=["q_proj"]), found)
    with pytest.raises(TrainerFailure, match="the model has no layer patch_embedding, patch_conv, linear_fc1"):
        require_modules(Lora(target_modules=["patch_embedding", "patch_conv", "linear_fc1"]), found)


def test_files_about_images_are_copied_only_with_a_model_that_reads_images(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with_images, of_text = (
        save_family(gemma3, tmp_path / "images"),
        Path(shutil.copytree(tiny_model_dir, tmp_path / "text")),
    )
    save_tokenizer(with_images)
    for folder, expected in ((with_images, {*PROCESSOR}), (of_text, set())):
        for name in PROCESSOR:
            (folder / name).write_text("{}")
        scratch = tmp_path / f"copy of {folder.name}"
        found = inspect_model(open_storage(make_bundle(model={"uri": str(folder)})), str(folder), scratch)
        assert {*PROCESSOR} & found.files.keys() == expected
        assert {*PROCESSOR} & found.pins.keys() == expected
        assert {*PROCESSOR} & {path.name for path in scratch.iterdir()} == expected


def test_qwen2_5_vl_is_read_with_the_flat_settings_with_which_it_is_published(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    nested = save_family(qwen2_5_vl, tmp_path / "nested")
    save_tokenizer(nested)
    flat = Path(shutil.copytree(nested, tmp_path / "flat"))
    settings = json.loads((flat / "config.json").read_text())
    text = settings.pop("text_config")
    rotations = text.pop("rope_parameters")
    text["rope_theta"] = rotations["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rotations["mrope_section"]}
    text["sliding_window"] = 8  # not used, because use_sliding_window is false
    (flat / "config.json").write_text(json.dumps(text | settings))
    found = [
        inspect_model(open_storage(make_bundle(model={"uri": str(folder)})), str(folder), tmp_path / f"{folder.name}2")
        for folder in (nested, flat)
    ]
    assert found[0].shape == found[1].shape
    assert found[0].sizes == found[1].sizes
    assert found[0].context == found[1].context == 512
    tokens = torch.arange(4, 24)[None]
    models = [load_model(folder, MethodType.LORA, torch.device("cpu")) for folder in (nested, flat)]
    first, second = (model(input_ids=tokens).logits for model in models)
    assert torch.equal(first, second)


def test_weights_that_predict_further_tokens_are_left_out(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = save_family(qwen3_5_with_images, tmp_path / "model")
    save_tokenizer(folder)
    weights = load_file(folder / "model.safetensors")
    further = {"mtp.fc.weight": torch.ones(32, 64), "mtp.layers.0.self_attn.q_proj.weight": torch.ones(64, 32)}
    save_file(weights | further, folder / "model.safetensors", {"format": "pt"})
    found = inspect_model(open_storage(make_bundle(model={"uri": str(folder)})), str(folder), tmp_path / "scratch")
    model = load_model(folder, MethodType.LORA, torch.device("cpu"))
    assert found.sizes.keys() == {name for name in dict(model.named_parameters()) if is_tuned(name)}
    assert not [name for name, _ in model.named_parameters() if "mtp" in name]


def test_both_layouts_of_checkpoints_have_the_names_in_memory() -> None:
    of_layer = "layers.0.mlp.up_proj.weight"
    newer = [f"model.language_model.{of_layer}", "lm_head.weight", "model.visual.a.weight"]
    llava = [f"language_model.model.{of_layer}", "language_model.lm_head.weight", "vision_tower.a.weight"]
    qwen = [f"model.{of_layer}", "lm_head.weight", "visual.a.weight"]
    for kind, older in (("gemma3", llava), ("mistral3", llava), ("qwen2_5_vl", qwen)):
        for names in (older, newer):
            assert list(language_model(kind, dict.fromkeys(names, ()))) == newer[:2]
    for kind in ("qwen3_vl", "qwen3_5"):
        assert list(language_model(kind, dict.fromkeys(newer, ()))) == newer[:2]
        assert list(language_model(kind, dict.fromkeys(qwen, ()))) == ["lm_head.weight"], (
            "Transformers would not either"
        )


MXFP4 = {"model_type": "gpt_oss", "num_local_experts": 32, "quantization_config": {"quant_method": "mxfp4"}}


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}},
            "Set spec.model.uri to the original",
        ),
        (MXFP4, "Use a copy of the model in bfloat16. To convert GPT-OSS, load it with"),
        ({"model_type": "qwen2_moe", "num_experts": 60}, "Choose a model without experts, or one of gpt_oss, mixtral,"),
        ({"model_type": "qwen3_moe", "num_experts": 8, "mlp_only_layers": [1]}, "with experts in every layer."),
    ],
)
def test_the_remedy_names_what_can_be_used_instead(config: dict[str, Any], remedy: str) -> None:
    with pytest.raises(TrainerFailure) as caught:
        require_supported(config | {"architectures": ["SomeForCausalLM"]}, "s3://models/m")
    assert remedy in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, None),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}, None),
        ({"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}, None),
        ({"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"]}, None),
        ({"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}, None),
        *(
            (
                {"model_type": kind, "architectures": [named]},
                "Of the models that also read images, only gemma3, mistral3, qwen2_5_vl, qwen3_5, qwen3_vl are tuned, "
                "on text",
            )
            for kind, named in (
                ("gemma3n", "Gemma3nForConditionalGeneration"),
                ("gemma4", "Gemma4ForConditionalGeneration"),
                ("llama4", "Llama4ForConditionalGeneration"),
                ("llava", "LlavaForConditionalGeneration"),
                ("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
                ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
            )
        ),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is not a causal language model"),
        ({"model_type": "gemma3", "architectures": ["Gemma3Model"]}, "config.json names Gemma3Model"),
        (
            {
                "model_type": "mistral3",
                "architectures": ["Mistral3ForConditionalGeneration"],
                "text_config": {"n_routed_experts": 8},
            },
            "is of model_type mistral3 and has mixture-of-experts layers",
        ),
        (
            {
                "model_type": "gemma3",
                "architectures": ["Gemma3ForConditionalGeneration"],
                "quantization_config": {"quant_method": "gptq"},
            },
            "is already quantized",
        ),
    ],
)
def test_a_model_with_images_is_tuned_only_where_tests_prove_it(config: dict[str, Any], said: str | None) -> None:
    if said is None:
        require_supported(config, "s3://models/m")
        return
    with pytest.raises(TrainerFailure) as caught:
        require_supported(config, "s3://models/m")
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
    assert said in caught.value.message
