"""What of a model that reads images is trained, whatever the settings name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.spec.method import Method
from finetune_trainer.base.composite import is_tuned
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.trainable import make_trainable, trained_weights
from finetune_trainer.sizing.saved_modules import PEFT_PREFIX
from tests.unit.finetune_trainer.model_families import COMPOSITE, Family, save_family


@pytest.mark.parametrize("family", COMPOSITE, ids=lambda family: family.__name__)
@pytest.mark.parametrize(
    "settings",
    [
        {"type": "Full"},
        {"lora": {}},
        {"lora": {"bias": "All"}},
        {"lora": {"targetModules": ["q_proj"], "modulesToSave": ["norm"]}},
        {"type": "QLoRA", "lora": {"targetModules": ["o_proj", "up_proj"]}},
    ],
    ids=["full", "all linear layers", "biases", "names that images share", "four bits"],
)
def test_only_the_language_model_is_trained(settings: dict[str, Any], family: Family, tmp_path: Path) -> None:
    method = Method.model_validate(settings)
    base = load_model(save_family(family, tmp_path), method.type, torch.device("cpu"))
    model = make_trainable(base, method, method.type, seed=0)
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    trained = {name.removeprefix(PEFT_PREFIX) for name in {*trained_weights(model)} | adapted}
    assert trained
    assert {*filter(is_tuned, trained)} == trained
