"""What the base model's folder must hold."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Lora
from finetune_trainer.base.base_model import BaseModel, inspect_model
from finetune_trainer.base.chosen_modules import require_modules, require_quantizable
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def inspect(make_bundle: MakeBundle, model: Path, scratch: Path) -> BaseModel:
    return inspect_model(open_storage(make_bundle(model={"uri": str(model)})), str(model), scratch)


def refused(make_bundle: MakeBundle, model: Path, scratch: Path) -> tuple[FailureReason, str]:
    with pytest.raises(TrainerFailure) as caught:
        inspect(make_bundle, model, scratch)
    return caught.value.reason, caught.value.message


def test_settings_and_tokenizer_are_read_and_weights_are_not_copied(
    make_bundle: MakeBundle, model: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    change(model / "generation_config.json", eos_token_id=[3, 2])
    found = inspect(make_bundle, model, scratch)
    assert (found.context, found.end_tokens) == (512, (3, 2))
    assert found.tokenizer.eos_token == "<|end|>"
    assert not list(scratch.glob("*.safetensors"))


def test_weights_in_several_files_are_counted_together(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    whole = inspect(make_bundle, model, tmp_path / "1").shape
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    shards = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({name: weights[name] for name in weights if shards[name] == shard}, model / shard)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    split = inspect(make_bundle, model, tmp_path / "2").shape
    assert (split.parameters, set(split.matrices)) == (whole.parameters, set(whole.matrices))
    (model / "model-2.safetensors").unlink()
    reason, message = refused(make_bundle, model, tmp_path / "3")
    assert reason is FailureReason.MODEL_NOT_FOUND
    assert "model-2.safetensors is missing" in message


def test_a_config_that_does_not_say_how_large_the_model_is_is_refused(
    make_bundle: MakeBundle, model: Path, tmp_path: Path
) -> None:
    change(model / "config.json", num_hidden_layers=None)
    reason, message = refused(make_bundle, model, tmp_path / "scratch")
    assert reason is FailureReason.MODEL_UNSUPPORTED
    assert "config.json must set num_hidden_layers to a positive integer" in message


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "is not a causal language model: config.json names BertForMaskedLM"),
        ({"architectures": None}, "is not a causal language model: config.json names no architecture"),
        ({"model_type": "novel"}, "is of model_type novel, which this version of Transformers does not know"),
        ({"num_experts": 8}, "is of model_type llama and has mixture-of-experts layers, which this operator trains"),
        ({"model_type": "whisper"}, "generates text only together with another model"),
        ({"model_type": "xlstm"}, "cannot compute logits for selected positions only"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is already quantized"),
    ],
)
def test_a_model_we_cannot_tune_is_refused(
    make_bundle: MakeBundle, model: Path, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    change(model / "config.json", **keys)
    reason, message = refused(make_bundle, model, tmp_path / "scratch")
    assert reason is FailureReason.MODEL_UNSUPPORTED
    assert said in message


def test_an_adapter_that_nothing_would_read_is_refused(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    found = replace(inspect(make_bundle, model, tmp_path / "scratch"), model_type="falcon_h1")
    sizes = {"model.layers.0.mamba.out_proj.weight": (8, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8)}
    require_modules(Lora(target_modules=["out_proj"]), replace(found, model_type="bamba", sizes=sizes))
    require_modules(Lora(), replace(found, sizes=sizes))
    with pytest.raises(TrainerFailure, match="an adapter on out_proj has no effect, because falcon_h1 reads") as caught:
        require_modules(Lora(target_modules=["q_proj", "out_proj"]), replace(found, sizes=sizes))
    assert caught.value.reason is FailureReason.SPEC_INVALID


def test_a_model_whose_layers_stay_whole_is_refused_under_qlora(
    make_bundle: MakeBundle, model: Path, tmp_path: Path
) -> None:
    found = inspect(make_bundle, model, tmp_path / "scratch")
    require_quantizable(found, Lora())
    with pytest.raises(TrainerFailure, match="QLoRA cannot quantize the layers of falcon to 4 bits") as caught:
        require_quantizable(replace(found, model_type="falcon"), Lora())
    assert caught.value.reason is FailureReason.SPEC_INVALID


def test_code_that_comes_with_a_model_is_never_run(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(model / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    change(model / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    assert refused(make_bundle, model, tmp_path / "scratch")[0] is FailureReason.MODEL_UNSUPPORTED
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("breakage", "reason", "said"),
    [
        ("config.json", FailureReason.MODEL_NOT_FOUND, "There is no config.json in"),
        ("model.safetensors", FailureReason.MODEL_UNSUPPORTED, "There is no model.safetensors in"),
        ("tokenizer.json", FailureReason.MODEL_UNSUPPORTED, "The tokenizer in"),
    ],
)
def test_a_missing_file_is_named(
    make_bundle: MakeBundle, model: Path, tmp_path: Path, breakage: str, reason: FailureReason, said: str
) -> None:
    (model / breakage).unlink()
    found, message = refused(make_bundle, model, tmp_path / "scratch")
    assert found is reason
    assert said in message


def test_weights_in_another_format_are_named_with_the_remedy(
    make_bundle: MakeBundle, model: Path, tmp_path: Path
) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "only pytorch_model.bin. Load the model with Transformers" in refused(make_bundle, model, tmp_path / "s")[1]


def test_an_adapter_is_no_base_model(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")
    assert (
        "but an adapter. Set spec.model.uri to the adapter's base "
        "model" in refused(make_bundle, model, tmp_path / "scratch")[1]
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "If it is a Git LFS pointer, run git lfs pull",
        ),
        (b"", "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "has a damaged safetensors header"),
        (struct.pack("<Q", 9) + b"not json!", "has a damaged safetensors header"),
    ],
)
def test_a_file_that_only_has_the_name_of_weights_is_refused(
    make_bundle: MakeBundle, model: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    (model / "model.safetensors").write_bytes(content)
    reason, message = refused(make_bundle, model, tmp_path / "scratch")
    assert reason is FailureReason.MODEL_UNSUPPORTED
    assert said in message


def test_weights_that_were_cut_short_are_noticed(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    reason, message = refused(make_bundle, model, tmp_path / "scratch")
    assert (reason, "is incomplete" in message) == (FailureReason.MODEL_NOT_FOUND, True)


def test_an_empty_folder_is_no_model(make_bundle: MakeBundle, tmp_path: Path) -> None:
    assert refused(make_bundle, tmp_path / "none", tmp_path / "s")[0] is FailureReason.MODEL_NOT_FOUND
