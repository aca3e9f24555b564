"""Weights against config.json, from headers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from finetune_api.reasons import FailureReason
from finetune_trainer.base.base_model import inspect_model
from finetune_trainer.base.weights import read_header
from finetune_trainer.base.weights_fit import is_tied, misfit, vocabulary_of
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model, save_tokenizer
from tests.unit.finetune_trainer.model_families import ALONE, FAMILIES, Family, save_family

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


@pytest.mark.parametrize("family", [*FAMILIES, *ALONE])
def test_the_weights_of_every_family_fit_its_own_settings(
    family: Family, tmp_path: Path, make_bundle: MakeBundle
) -> None:
    save_family(family, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = read_header(open_storage(make_bundle()), str(path), path.stat().st_size)
    config, model = AutoConfig.from_pretrained(tmp_path), family()
    assert misfit(config, tensors) is None
    found = vocabulary_of(tensors, is_tied(config))
    assert found
    modules = dict(model.named_modules())
    assert modules[found.embedding_name.removesuffix(".weight")] is model.get_input_embeddings()
    assert found.tied == is_tied(config)
    if not found.tied:
        assert modules[found.head_name.removesuffix(".weight")] is model.get_output_embeddings()


def drop(*parts: str) -> Change:
    def change(_: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return change


def store(name: str, dtype: torch.dtype) -> Change:
    return lambda _, weights: weights.update({name: weights[name].to(dtype)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config, _: config.update(vocab_size=310), "vocab_size 310, but model.embed_tokens.weight has 320 rows"),
        (lambda config, _: config.update(vocab_size=330), "vocab_size 330, but model.embed_tokens.weight has 320 rows"),
        (lambda config, _: config.update(hidden_size=64), "hidden_size 64, but model.embed_tokens.weight has 32 col"),
        (
            lambda config, _: config.update(num_hidden_layers=4),
            "4 layers, counted from 0, but there are no weights of ",
        ),
        (lambda config, _: config.update(num_hidden_layers=1), "has 1 layers, but there are weights of 2 layers"),
        (drop("layers.0."), "there are no weights of layer 0"),
        (
            lambda config, _: config.update(tie_word_embeddings=True),
            "tie_word_embeddings true, but lm_head.weight differs from model.embed_tokens.weight. If the model has a "
            "separate output head, use a copy with tie_word_embeddings false",
        ),
        (drop("lm_head"), "there is no output head (lm_head.weight)"),
        (
            store("model.layers.0.mlp.up_proj.weight", torch.float8_e4m3fn),
            "is stored as F8_E4M3, so the weights are already q",
        ),
        (
            store("model.layers.0.mlp.up_proj.weight", torch.uint8),
            "is stored as U8, so the weights are already quantized",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_settings_are_refused(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path, change: Change, said: str
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, weights)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainerFailure) as caught:
        inspect_model(open_storage(make_bundle()), str(folder), tmp_path / "scratch")
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
    assert said in caught.value.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_float_type_fit(make_bundle: MakeBundle, tmp_path: Path, dtype: torch.dtype) -> None:
    save_model(tmp_path / "model", tie_word_embeddings=True)
    save_tokenizer(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    found = inspect_model(open_storage(make_bundle()), str(path.parent), tmp_path / "scratch")
    assert found.vocabulary
    assert found.vocabulary.tied
    assert found.rows == 320


def test_a_copy_of_the_embedding_may_stand_as_the_head_of_a_tied_model(make_bundle: MakeBundle, tmp_path: Path) -> None:
    save_model(tmp_path / "model", tie_word_embeddings=True)
    save_tokenizer(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path, {"format": "pt"})
    assert inspect_model(open_storage(make_bundle()), str(path.parent), tmp_path / "scratch").vocabulary
