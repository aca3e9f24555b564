"""The manifests of examples/: valid, and of the size their comments claim."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.quantity import bytes_of
from finetune_api.spec.dataset import RowFormat
from finetune_api.spec.job import FineTuneJobSpec
from finetune_cli.manifests import problems
from finetune_trainer.sizing.memory import GENERATION_FACTOR, Load, Setup, first_fit
from finetune_trainer.sizing.model_shape import ModelShape, model_shape
from tests.example_manifests import FOLDER
from tests.example_manifests import JOBS as MANIFESTS

CLAIM = re.compile(r"^# Sized for (\S+) with rows of up to (\d+) tokens on (\d+Mi) \((.+)\)\.$", re.MULTILINE)
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32768,
    },
    "Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "Qwen2.5-1.5B-Instruct": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "gemma-2b": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 256000,
    },
}
"""Of the models' published config.json, what their shape comes from."""
CONFIGS["Qwen2.5-1.5B"] = CONFIGS["Qwen2.5-1.5B-Instruct"]


def shape(model: str) -> ModelShape:
    config = AutoConfig.for_model(**CONFIGS[model])
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    return model_shape(config.to_dict(), {name: tuple(weight.shape) for name, weight in weights.items()})


def spec_of(path: Path) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(yaml.safe_load(path.read_text())["spec"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_is_valid(name: str) -> None:
    assert list(problems(MANIFESTS[name])) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_is_in_the_index_and_named_for_its_use(name: str) -> None:
    assert f"`{name}`" in (FOLDER / "README.md").read_text()
    use = Path(name).stem if Path(name).stem != "finetunejob" else Path(name).parent.name
    assert yaml.safe_load(MANIFESTS[name].read_text())["metadata"]["name"] == use


@pytest.mark.parametrize(
    ("model", "billions"), [("Llama-3.1-8B-Instruct", 8.03), ("Mistral-7B-Instruct-v0.3", 7.25), ("gemma-2b", 2.51)]
)
def test_the_shapes_are_those_of_the_published_models(model: str, billions: float) -> None:
    assert shape(model).parameters / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("name", [name for name, path in MANIFESTS.items() if CLAIM.search(path.read_text())])
def test_a_job_fits_the_gpu_its_comment_names(name: str) -> None:
    text = MANIFESTS[name].read_text()
    ((model, tokens, memory, _),) = CLAIM.findall(text)
    spec = spec_of(MANIFESTS[name])
    assert spec.model.uri.endswith(f"/{model}")
    assert (spec.training.max_sequence_length or int(tokens)) == int(tokens)
    lora = spec.method.lora
    setup = Setup(spec.method.type.value, spec.training.optimizer.value, False, lora.r, lora.dropout > 0)
    micro_batch = max(int(tokens), spec.training.micro_batch_tokens or 2048)
    # At worst half of what is read is learned; of format Text all of it.
    share = 1 if any(source.format is RowFormat.TEXT for source in spec.dataset.train) else 2
    load = Load(micro_batch, micro_batch // share, GENERATION_FACTOR * micro_batch)
    assert first_fit(shape(model), [setup], [load], bytes_of(memory))
