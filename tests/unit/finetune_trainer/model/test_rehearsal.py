"""The start of a training, rehearsed without weights: preflight finds with it what otherwise the GPU would find."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaPreTrainedModel

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method, MethodType
from finetune_api.spec.training import GradientCheckpointing
from finetune_trainer.base.rehearsal import Answer, Request
from finetune_trainer.base.supported import PROVEN
from finetune_trainer.base.weights_fit import is_tied
from finetune_trainer.model.parameters.loading import load_model, load_without_weights
from finetune_trainer.model.parameters.trainable import make_trainable, trained_weights
from finetune_trainer.model.rehearsal import rehearse
from finetune_trainer.preflight.rehearsal import needs_rehearsal, rehearse_apart
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.model_families import (
    ALONE,
    COMPOSITE,
    EXPERTS,
    FAMILIES,
    Family,
    gemma3,
    llama,
    llama_tied,
    mistral3,
    qwen2_5_vl,
    rwkv,
    save_family,
)

EVERY = [*FAMILIES, *EXPERTS, *COMPOSITE, *ALONE]
CPU = torch.device("cpu")
Sizes = dict[str, tuple[int, ...]]


def headers(folder: Path) -> Sizes:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def request(folder: Path, adapter: Path | None = None, **method: Any) -> Request:
    return Request(
        folder=str(folder),
        headers=headers(folder),
        method=Method.model_validate(method),
        adapter=str(adapter) if adapter else None,
        gradient_checkpointing=GradientCheckpointing.AUTO,
    )


@pytest.fixture(scope="module", params=EVERY, ids=lambda family: family.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of each family in turn. Read only."""
    family: Family = request.param
    return save_family(family, tmp_path_factory.mktemp("families") / family.__name__)


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_it_trains_the_parameters_of_the_training(folder: Path, method: MethodType) -> None:
    wish = Method(type=method)
    models = load_model(folder, method, CPU), load_without_weights(folder, headers(folder))
    real, rehearsed = (trained_weights(make_trainable(model, wish, method, seed=0)) for model in models)
    assert {name: weight.shape for name, weight in rehearsed.items()} == {n: w.shape for n, w in real.items()}
    assert {weight.device.type for weight in rehearsed.values()} == {"meta"}


@pytest.mark.parametrize("method", [{"type": "LoRA"}, {"type": "Full"}, {"type": "QLoRA"}])
def test_every_family_that_can_be_trained_passes(folder: Path, method: dict[str, Any]) -> None:
    assert rehearse(request(folder, **method)) == Answer()


def test_a_model_whose_layers_are_not_known_cannot_be_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family(llama, tmp_path)
    monkeypatch.setattr(LlamaPreTrainedModel, "_no_split_modules", None)
    assert rehearse(request(folder)) == Answer(layered=False)


def broken(change: Callable[[Sizes], Any], folder: Path, **method: Any) -> tuple[FailureReason, str]:
    asked = request(folder, **method)
    change(asked.headers)
    answer = rehearse(asked)
    assert answer.failure
    return answer.failure.reason, answer.failure.finding


@pytest.mark.parametrize(
    "change", [lambda sizes: sizes.pop("model.norm.weight"), lambda s: s.update({"model.norm.weight": (7,)})]
)
def test_weights_that_do_not_fit_are_found(tmp_path: Path, change: Callable[[Sizes], Any]) -> None:
    reason, finding = broken(change, save_family(llama, tmp_path))
    assert reason is FailureReason.MODEL_UNSUPPORTED
    assert "1 are missing or have another shape. The first one is" in finding
    assert "model.norm.weight" in finding


@pytest.mark.parametrize("name", ["layers", "proj"])
def test_modules_that_peft_cannot_save_are_found(tmp_path: Path, name: str) -> None:
    folder = save_family(llama, tmp_path)
    reason, finding = broken(lambda _: None, folder, lora={"modulesToSave": [name]})
    assert reason is FailureReason.SPEC_INVALID
    assert "modulesToSave does not fit the model" in finding


@pytest.mark.parametrize("family", [llama_tied, *COMPOSITE], ids=lambda family: family.__name__)
def test_an_output_head_can_be_saved_whether_it_is_tied_or_not(family: Family, tmp_path: Path) -> None:
    folder, wish = save_family(family, tmp_path / "model"), {"modulesToSave": ["lm_head"]}
    assert rehearse(request(folder, lora=wish)) == Answer()
    method = Method.model_validate({"lora": wish})
    model = make_trainable(load_model(folder, MethodType.LORA, CPU), method, MethodType.LORA, seed=0)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert rehearse(request(folder, tmp_path / "adapter", lora=wish)) == Answer()
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight.requires_grad
    assert (head.weight is table.weight) == is_tied(model.config)


def test_a_model_without_gradient_checkpointing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(save_family(llama, tmp_path))
    monkeypatch.setattr(type(llama()), "supports_gradient_checkpointing", False)
    assert rehearse(asked) == Answer()
    enabled = rehearse(asked.model_copy(update={"gradient_checkpointing": GradientCheckpointing.ENABLED}))
    assert enabled.failure
    assert "does not support gradient checkpointing" in enabled.failure.finding


def saved_adapter(folder: Path, to: Path, rename: Callable[[str], str] = str) -> Path:
    """An adapter on the model in `folder` whose weights are not those of a new one."""
    model = make_trainable(load_model(folder, MethodType.LORA, CPU), Method(), MethodType.LORA, seed=0)
    for weight in trained_weights(model).values():
        weight.data += 0.02
    model.save_pretrained(to, save_embedding_layers=False)
    path = to / "adapter_model.safetensors"
    save_file({rename(name): weight for name, weight in load_file(path).items()}, path, {"format": "pt"})
    return to


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS, *COMPOSITE], ids=lambda family: family.__name__)
def test_an_adapter_of_the_model_passes(family: Family, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "model")
    assert rehearse(request(folder, saved_adapter(folder, tmp_path / "adapter"))) == Answer()


@pytest.mark.parametrize("family", [llama, *COMPOSITE], ids=lambda family: family.__name__)
def test_an_adapter_that_peft_would_ignore_is_found(family: Family, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "model")
    adapter = saved_adapter(folder, tmp_path / "adapter", lambda name: name.replace(".layers.1.", ".blocks.1."))
    answer = rehearse(request(folder, adapter))
    assert answer.failure
    assert answer.failure.reason is FailureReason.SPEC_INVALID
    assert "spec.method.lora.from" in answer.failure.finding


def test_the_first_layer_that_is_ignored_is_named(tmp_path: Path) -> None:
    folder = save_family(llama, tmp_path / "model")
    adapter = saved_adapter(folder, tmp_path / "adapter", lambda name: name.replace("layers.1.mlp", "layers.1.ffn"))
    answer = rehearse(request(folder, adapter))
    assert answer.failure
    assert "the adapter has a weight for model.layers.1.ffn.down_proj, which the model does not have" in (
        answer.failure.finding
    )


def earlier_name(name: str) -> str:
    """The name that Transformers had before version 4.52 for a weight of Gemma 3 or Mistral 3 with images."""
    return name.replace("model.language_model.", "language_model.model.", 1) if "language_model." in name else name


def earlier_name_in_qwen(name: str) -> str:
    """The name that Transformers had before version 4.52 for a weight of Qwen2.5-VL."""
    return name.replace("model.language_model.", "model.", 1)


@pytest.mark.parametrize(
    ("family", "earlier_name"),
    [(gemma3, earlier_name), (mistral3, earlier_name), (qwen2_5_vl, earlier_name_in_qwen)],
    ids=lambda part: part.__name__,
)
@pytest.mark.parametrize("targets", ["names of their end", "whole names"])
def test_an_adapter_with_the_earlier_layer_names_is_read_whole(
    family: Family, earlier_name: Callable[[str], str], targets: str, tmp_path: Path
) -> None:
    folder = save_family(family, tmp_path / "model")
    saved_adapter(folder, tmp_path / "adapter")
    adapter = saved_adapter(folder, tmp_path / "earlier", earlier_name)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    whole = [earlier_name(name) for name in settings["target_modules"]]
    ends = sorted({name.rpartition(".")[2] for name in whole})
    settings["target_modules"] = whole if targets == "whole names" else ends
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert rehearse(request(folder, adapter)) == Answer()
    present, earlier = (
        trained_weights(make_trainable(load_model(folder, MethodType.LORA, CPU), Method(), MethodType.LORA, 0, place))
        for place in (tmp_path / "adapter", adapter)
    )
    assert present.keys() == earlier.keys()
    assert all(torch.equal(weight, earlier[name]) for name, weight in present.items())


def test_another_process_gives_the_same_answer(tmp_path: Path) -> None:
    folder = save_family(llama, tmp_path / "model")
    asked = request(folder, lora={"modulesToSave": ["layers"], "from": "s3://bucket/adapter"})
    assert rehearse_apart(asked, tmp_path) == rehearse(asked) != Answer()


def test_a_rehearsal_that_breaks_off_refuses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = request(save_family(rwkv, tmp_path / "model"))
    damaged = asked.model_construct(**(dict(asked) | {"headers": {"weight": ("x",)}}))
    assert rehearse_apart(damaged, tmp_path) == Answer()
    assert "The rehearsal of the training ended with exit code 1" in capsys.readouterr().out


def test_models_that_need_no_rehearsal_are_those_of_the_tests(tmp_path: Path) -> None:
    folders = [save_family(family, tmp_path / str(i)) for i, family in enumerate(EVERY)]
    assert {json.loads((folder / "config.json").read_text())["model_type"] for folder in folders} == set(PROVEN)


@pytest.mark.parametrize(
    ("model_type", "method", "needed"),
    [
        ("llama", {}, False),
        ("llama", {"type": "Full", "lora": {"targetModules": ["q_proj"]}}, False),
        ("llama", {"type": "LoRA", "lora": {"targetModules": ["q_proj"]}}, True),
        ("llama", {"type": "LoRA", "lora": {"modulesToSave": ["lm_head"]}}, True),
        ("llama", {"type": "None", "lora": {"from": "s3://models/adapter"}}, True),
        ("stablelm", {"type": "Full"}, True),
    ],
)
def test_it_runs_where_it_can_find_anything(
    model_type: str, method: dict[str, Any], needed: bool, make_bundle: MakeBundle
) -> None:
    assert needs_rehearsal(make_bundle(method=method).spec, model_type) is needed
