"""Whole jobs over models that read images too: servers load the results in place of the base model."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from finetune_trainer.base.composite import in_memory, is_tuned
from finetune_trainer.sizing.saved_modules import PEFT_PREFIX
from tests.integration.finetune_trainer.trainings import prepare, run
from tests.unit.finetune_trainer.conftest import MakeBundle, save_tokenizer
from tests.unit.finetune_trainer.model_families import COMPOSITE, Family, save_family


@pytest.fixture(params=COMPOSITE, ids=lambda family: family.__name__)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a model of each family in turn, with a tokenizer and the settings about images."""
    family: Family = request.param
    folder = save_family(family, tmp_path / "model")
    save_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def frozen_names(model: Path, names: Iterable[str]) -> set[str]:
    """Those of the names in the model's files that are outside of its language model."""
    kind = json.loads((model / "config.json").read_text())["model_type"]
    return {name for name in names if not is_tuned(in_memory(kind, name))}


def results(make_bundle: MakeBundle, model: Path, output: Path, method: dict[str, Any]) -> Path:
    training = {"learningRate": 0.01, "epochs": 2, "globalBatchSize": 4}
    parts = {"model": {"uri": str(model)}, "method": method, "training": training}
    bundle = make_bundle(**parts, output={"uri": str(output), "merge": method["type"] != "Full"})
    prepare(bundle)
    _, writer = run(bundle)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert writer.intent.evaluation
    return output


@pytest.mark.thorough_for("mistral3", "*_vl", "qwen3_5_with_images")
def test_the_adapter_is_on_the_language_model_and_the_merged_model_still_reads_images(
    make_bundle: MakeBundle, model: Path, tmp_path: Path
) -> None:
    found = results(make_bundle, model, tmp_path / "out", {"type": "LoRA", "lora": {"r": 2}})
    names = load_file(found / "adapter" / "adapter_model.safetensors").keys()
    assert all(name.startswith(f"{PEFT_PREFIX}model.language_model.layers.") for name in names)
    base, merged = (load_file(folder / "model.safetensors") for folder in (model, found / "merged"))
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed
    assert frozen_names(model, changed) == set()
    assert (found / "merged" / "preprocessor_config.json").read_text() == "{}"
    tokens = torch.arange(4, 24)[None]
    with torch.no_grad():
        whole = AutoModelForImageTextToText.from_pretrained(found / "merged", dtype=torch.float32)(input_ids=tokens)
        plain = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
        before = plain(input_ids=tokens).logits
        served = PeftModel.from_pretrained(plain, found / "adapter")
        together = served(input_ids=tokens).logits
    assert get_peft_model_state_dict(served).keys() == names, "the settings name these layers and no others"
    rounded, moved = (whole.logits - together).abs().mean(), (before - together).abs().mean()
    assert rounded < 0.1 * moved, "up to the rounding of the merged weights to bf16"


@pytest.mark.thorough_for("mistral3", "*_vl", "qwen3_5_with_images")
def test_full_trains_the_language_model_only(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    found = results(make_bundle, model, tmp_path / "out", {"type": "Full"})
    base, tuned = (load_file(folder / "model.safetensors") for folder in (model, found / "model"))
    assert tuned.keys() == base.keys()
    frozen = {name for name in base if torch.equal(base[name], tuned[name])}
    assert frozen >= frozen_names(model, base) != set()
    assert frozen != base.keys()
    assert (found / "model" / "preprocessor_config.json").exists()
