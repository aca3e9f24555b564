"""Models that read images as well as text. Only their language model is tuned, on text."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer.sizing.saved_modules import PEFT_PREFIX

TEXT_TUNED = ("gemma3", "mistral3", "qwen2_5_vl", "qwen3_5", "qwen3_vl")
"""Values of model_type of the models with images whose language model can be tuned. The tests of the model families
prove each of them."""
PROCESSOR = ("processor_config.json", "preprocessor_config.json")
"""Files with which servers prepare images for such a model."""
LANGUAGE_MODEL = "model.language_model."
"""The beginning of the names of the language model's modules, without the output head."""
LLAVA = {r"^language_model\.model\.": LANGUAGE_MODEL, r"^language_model\.lm_head\.": "lm_head."}
IN_CHECKPOINTS = {
    "gemma3": LLAVA,
    "mistral3": LLAVA,
    "qwen2_5_vl": {r"^model\.(?!language_model\.|visual\.)": LANGUAGE_MODEL},
}
"""Beginnings of names in checkpoints of a model_type, as patterns, and what they are called in memory. The other models
have the same names in both."""
Found = TypeVar("Found")


def is_composite(config: Mapping[str, Any]) -> bool:
    """Returns whether this config.json describes a model with images whose language model can be tuned."""
    named = config.get("architectures") or []
    whole = any(str(name).endswith("ForConditionalGeneration") for name in named)
    return whole and config.get("model_type") in TEXT_TUNED


def language_model(model_type: str, weights: Mapping[str, Found]) -> dict[str, Found]:
    """Returns the weights of the language model and its output head, by the names that they have in memory."""
    renamed = {in_memory(model_type, name): found for name, found in weights.items()}
    return {name: found for name, found in renamed.items() if is_tuned(name)}


def in_memory(model_type: str, name: str) -> str:
    """Returns the name in memory of a module or weight of a model with images; `name` itself for another model_type.
    Transformers had the names of IN_CHECKPOINTS in memory too until version 4.52, so older adapters have them."""
    for old, new in IN_CHECKPOINTS.get(model_type, {}).items():
        if found := re.match(old, name):
            return f"{new}{name[found.end() :]}"
    return name


def adapter_in_memory(model_type: str, weights: Mapping[str, Found]) -> dict[str, Found]:
    """Returns the weights of an adapter by the names that PEFT gives them in memory. PEFT itself renames only some."""
    return {
        f"{PEFT_PREFIX}{in_memory(model_type, name.removeprefix(PEFT_PREFIX))}": found
        for name, found in weights.items()
    }


def is_tuned(name: str) -> bool:
    """Returns whether a name in memory belongs to the language model or to its output head."""
    return name.startswith((LANGUAGE_MODEL, "lm_head"))


def copy_processor(base: Path, to: Path) -> None:
    """Copies the files about images from the folder of the base model, if there are any, to the folder of a whole tuned
    model."""
    for name in PROCESSOR:
        if (base / name).exists():
            shutil.copyfile(base / name, to / name)
