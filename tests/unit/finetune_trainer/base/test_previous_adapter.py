"""The adapter a job continues from is checked before a GPU is held."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from finetune_api.reasons import FailureReason
from finetune_trainer.base.previous_adapter import UNNAMED
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.recipe import prepare
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model


@pytest.fixture
def adapter(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A LoRA adapter of rank 16 on every linear layer of the tiny model, as PEFT saves it."""
    return save_adapter(tiny_model_dir, tmp_path / "adapter")


def save_adapter(base: Path, folder: Path, **lora: Any) -> Path:
    import torch

    from finetune_api.spec.method import Method, MethodType
    from finetune_trainer.model.parameters.loading import load_model
    from finetune_trainer.model.parameters.trainable import attach_lora

    model = load_model(base, MethodType.LORA, torch.device("cpu"))
    attach_lora(model, Method.model_validate({"lora": lora}), seed=0).save_pretrained(
        folder, save_embedding_layers=False
    )
    return folder


def check(make_bundle: MakeBundle, adapter: Path, **lora: Any) -> None:
    bundle = make_bundle(method={"lora": {"from": str(adapter), **lora}})
    prepare(bundle, open_storage(bundle), Findings(), Path(bundle.spec.output.uri).parent / "scratch")


def refused(make_bundle: MakeBundle, adapter: Path, **lora: Any) -> tuple[FailureReason, str]:
    with pytest.raises(TrainerFailure) as caught:
        check(make_bundle, adapter, **lora)
    return caught.value.reason, caught.value.message


def test_an_adapter_of_the_same_settings_and_base_is_fine(make_bundle: MakeBundle, adapter: Path) -> None:
    check(make_bundle, adapter)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"r": 8}, "has r 16. Set spec.method.lora.r to 16."),
        ({"alpha": 16}, "has alpha 32. Set spec.method.lora.alpha"),
        ({"useRslora": True}, "has useRslora false"),
        ({"useDora": True}, "has useDora false"),
        ({"bias": "LoraOnly"}, 'has bias "None". Set spec.method.lora.bias'),
        ({"modulesToSave": ["lm_head"]}, "has modulesToSave []"),
        (
            {"targetModules": ["q_proj"]},
            "is for the layers down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj. Set",
        ),
    ],
)
def test_settings_that_are_not_the_adapters_are_refused_naming_its_own(
    make_bundle: MakeBundle, adapter: Path, lora: dict[str, Any], said: str
) -> None:
    reason, message = refused(make_bundle, adapter, **lora)
    assert reason is FailureReason.SPEC_INVALID
    assert said in message


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        (
            "init_lora_weights",
            "pissa_niter_4",
            'was created with init_lora_weights "pissa_niter_4", which changes the base',
        ),
        ("init_lora_weights", "olora", "Convert the adapter first, with PEFT's save_pretrained"),
        ("rank_pattern", {"v_proj": 64}, "has rank_pattern, which spec.method.lora does not support"),
        ("alpha_pattern", {"v_proj": 64}, "has alpha_pattern"),
        ("lora_bias", True, "has lora_bias"),
        ("target_parameters", ["q_proj.weight"], "has target_parameters, which spec.method.lora does not support"),
        ("trainable_token_indices", [1, 2], "has trainable_token_indices"),
        ("trainable_token_indices", {"embed_tokens": [1]}, "has trainable_token_indices"),
        ("alora_invocation_tokens", [5, 6], "has alora_invocation_tokens"),
        ("use_qalora", True, "has use_qalora"),
        ("use_bdlora", {"nblocks": 2}, "has use_bdlora"),
        ("arrow_config", {"top_k": 3}, "has arrow_config"),
        ("kasa_config", {"beta": 1e-4}, "has kasa_config"),
        ("monteclora_config", {"num_samples": 4}, "has monteclora_config"),
        ("velora_config", {"num_groups": 8}, "has velora_config"),
        ("megatron_config", {"hidden_size": 32}, "has megatron_config"),
    ],
)
def test_an_adapter_that_no_server_supports_is_not_continued(
    make_bundle: MakeBundle, adapter: Path, setting: str, value: Any, said: str
) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {setting: value}))
    reason, message = refused(make_bundle, adapter)
    assert reason is FailureReason.SPEC_INVALID
    assert said in message


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_an_adapter_that_left_the_base_alone_is_continued(make_bundle: MakeBundle, adapter: Path, init: Any) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": init}))
    check(make_bundle, adapter)


def test_every_setting_can_be_continued_with(make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path) -> None:
    lora = {
        "r": 4,
        "alpha": 4,
        "useDora": True,
        "useRslora": True,
        "bias": "LoraOnly",
        "modulesToSave": ["lm_head"],
        "targetModules": ["q_proj", "mlp.up_proj"],
    }
    check(make_bundle, save_adapter(tiny_model_dir, tmp_path / "adapter", **lora), **lora)


def test_fewer_modules_than_named_are_refused(make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model_dir, tmp_path / "adapter", targetModules=["q_proj"])
    _, message = refused(make_bundle, adapter, targetModules=["q_proj", "v_proj"])
    assert "is for the layers q_proj. Set spec.method.lora.targetModules" in message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 64}, "which the base model has with the shape 32 x 64"),
        ({"num_hidden_layers": 3}, "layers.2.mlp.down_proj, which the base model does not have"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    make_bundle: MakeBundle, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    save_model(tmp_path / "other", **config)
    reason, message = refused(make_bundle, save_adapter(tmp_path / "other", tmp_path / "adapter"))
    assert reason is FailureReason.SPEC_INVALID
    assert said in message


def test_where_there_is_no_adapter_it_says_what_is_missing(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    assert refused(make_bundle, tmp_path / "nowhere") == (
        FailureReason.MODEL_NOT_FOUND,
        f"spec.method.lora.from: there is no adapter_config.json in {tmp_path / 'nowhere'}. "
        "Correct spec.method.lora.from, or upload the adapter to that folder.",
    )
    assert "but a whole model. Set spec.model.uri to this folder" in refused(make_bundle, tiny_model_dir)[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "contains no settings of an adapter"),
        ("{", "contains no settings"),
        (json.dumps({"peft_type": "IA3"}), "is of type IA3, not LORA"),
    ],
)
def test_what_is_no_lora_adapter_is_refused(make_bundle: MakeBundle, adapter: Path, text: str, said: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    assert said in refused(make_bundle, adapter)[1]


KNOWN = {
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode": "a name",
    "r lora_alpha use_rslora use_dora bias modules_to_save target_modules": "spec.method.lora has a field",
    "exclude_modules layers_to_transform layers_pattern": "the adapter's matrices show the layers",
    "target_parameters": "the stacks of experts are those of spec.method.lora.targetModules, and others are refused",
    "lora_dropout fan_in_fan_out ensure_weight_tying runtime_config": "the result does not depend on it",
    "megatron_core qalora_group_size": "belongs to a setting that is refused",
    "init_lora_weights loftq_config eva_config corda_config lora_ga_config": "init_lora_weights decides",
}


def test_every_setting_that_peft_has_is_known_here() -> None:
    """A setting of a newer PEFT fails this test: refuse adapters with this setting in UNNAMED, or add the setting above
    with the reason why it may be set."""
    # Older versions of PEFT have fewer settings.
    assert {field.name for field in fields(LoraConfig)} <= {*UNNAMED, *" ".join(KNOWN).split()}
