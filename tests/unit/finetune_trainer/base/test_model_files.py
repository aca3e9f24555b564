"""Which files of a model's folder are read, and what is said of folders that cannot be."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from finetune_api.reasons import FailureReason
from finetune_trainer.base.base_model import BaseModel, inspect_model
from finetune_trainer.base.model_files import copy_files, weight_map
from finetune_trainer.copies.embeddings import SentenceModel
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle

INDEX = "model.safetensors.index.json"
READ = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
LEFT = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.fp16.safetensors",
    "consolidated.safetensors",
    "params.json",
    "model.gguf",
    "modeling_custom.py",
    "optimizer.pt",
    "training_args.bin",
    "trainer_state.json",
    "processor_config.json",
    "quantize_config.json",
    "additional_chat_templates/tool_use.jinja",
    "checkpoint-500/config.json",
    "checkpoint-500/model.safetensors",
    "original/consolidated.00.pth",
    "onnx/model.onnx",
)
"""What people leave in a model's folder."""


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def inspect(make_bundle: MakeBundle, folder: Path) -> BaseModel:
    return inspect_model(
        open_storage(make_bundle(model={"uri": str(folder)})), str(folder), folder.parent / f"copy of {folder.name}"
    )


def refused(make_bundle: MakeBundle, folder: Path) -> tuple[FailureReason, str]:
    with pytest.raises(TrainerFailure) as caught:
        inspect(make_bundle, folder)
    return caught.value.reason, caught.value.message


def write(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes JSON files, with the folders they are in."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def split(folder: Path, shards: int = 2) -> dict[str, str]:
    """Puts the weights of the folder's model into several files. Returns the file of each tensor."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-{1 + i % shards:05}-of-{shards:05}.safetensors" for i, name in enumerate(weights)}
    for shard in set(names.values()):
        save_file({name: weights[name] for name in weights if names[name] == shard}, folder / shard, {"format": "pt"})
    return names


def test_other_files_in_the_model_folder_are_not_read(make_bundle: MakeBundle, model: Path) -> None:
    write(model, dict.fromkeys(LEFT, "left here"))
    found = inspect(make_bundle, model)
    assert set(found.files) == {*READ, "model.safetensors"}
    copied = {path.name for path in (model.parent / "copy of model").rglob("*")}
    assert copied == READ, "Transformers sees what was inspected"


def test_the_same_files_are_copied_for_training(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---")
    names = split(model)
    write(model, {INDEX: {"weight_map": names}, "adapter_config.json": {}})
    found = inspect(make_bundle, model)
    storage = open_storage(make_bundle(model={"uri": str(model)}))
    copy_files(storage, str(model), found.files, tmp_path / "train")
    assert {path.name for path in (tmp_path / "train").iterdir()} == {*READ, "README.md", INDEX, *names.values()}


@pytest.mark.parametrize(
    ("change", "said"), [(Path.unlink, "no longer exists"), (lambda path: path.write_text("{}"), "now has 2")]
)
def test_a_model_that_was_changed_after_preflight_is_not_trained(
    make_bundle: MakeBundle, model: Path, tmp_path: Path, change: Any, said: str
) -> None:
    found = inspect(make_bundle, model)
    change(model / "config.json")
    with pytest.raises(
        TrainerFailure, match=f"config.json had .* {said}.* Let nothing change the model's files"
    ) as caught:
        copy_files(open_storage(make_bundle(model={"uri": str(model)})), str(model), found.files, tmp_path / "train")
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_was_replaced_by_another_one_of_the_same_size_is_not_trained(
    make_bundle: MakeBundle, model: Path, tmp_path: Path, name: str
) -> None:
    found = inspect(make_bundle, model)
    storage = open_storage(make_bundle(model={"uri": str(model)}))
    copy_files(storage, str(model), found.files, tmp_path / "before", found.pins)
    (model / name).write_bytes(b"{}".ljust((model / name).stat().st_size))
    with pytest.raises(
        TrainerFailure, match=rf"{name} was replaced after preflight had read it. Let nothing"
    ) as caught:
        copy_files(storage, str(model), found.files, tmp_path / "train", found.pins)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND


def test_a_model_card_and_files_that_are_not_used_may_change(
    make_bundle: MakeBundle, model: Path, tmp_path: Path
) -> None:
    write(model, {"README.md": {}, "other/model.safetensors": {}})
    found = inspect(make_bundle, model)
    assert set(found.pins) == set(found.files) - {"README.md"}
    storage = open_storage(make_bundle(model={"uri": str(model)}))
    (model / "README.md").write_text("another size")
    copy_files(storage, str(model), found.files, tmp_path / "train", found.pins)
    (model / "README.md").unlink()
    copy_files(storage, str(model), found.files, tmp_path / "again", found.pins)


def test_of_a_sentence_model_no_adapter_is_read(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    plain = SentenceModel(open_storage(make_bundle()), str(model), tmp_path / "plain").embed(["a text"])
    write(model, {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "no/such"}})
    found = SentenceModel(open_storage(make_bundle()), str(model), tmp_path / "sentence")
    assert not (tmp_path / "sentence" / "adapter_config.json").exists()
    assert found.embed(["a text"]) == pytest.approx(plain)


def test_one_file_is_read_before_shards_as_transformers_does(make_bundle: MakeBundle, model: Path) -> None:
    write(model, {INDEX: {"weight_map": {"model.norm.weight": "model-00001-of-00009.safetensors"}}})
    found = inspect(make_bundle, model)
    assert "model.safetensors" in found.files
    assert INDEX not in found.files, "of an old save"
    assert not (model.parent / "copy of model" / INDEX).exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"transformers_weights": "../other.safetensors"}, "names its weights in transformers_weights"),
        ({"configuration_files": ["config.4.0.0.json"]}, "has configuration_files"),
    ],
)
def test_settings_that_send_transformers_elsewhere_are_refused(
    make_bundle: MakeBundle, model: Path, config: dict[str, Any], said: str
) -> None:
    write(model, {"config.json": json.loads((model / "config.json").read_text()) | config})
    reason, message = refused(make_bundle, model)
    assert reason is FailureReason.MODEL_UNSUPPORTED
    assert said in message
    assert "save_pretrained" in message


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", 7, None, "..\\m.safetensors"]
)
def test_an_index_cannot_name_what_is_not_in_the_folder(make_bundle: MakeBundle, model: Path, shard: Any) -> None:
    split(model)
    write(model, {INDEX: {"weight_map": {"model.norm.weight": shard}}})
    reason, message = refused(make_bundle, model)
    assert reason is FailureReason.MODEL_UNSUPPORTED
    assert "the index and its shards are in one folder" in message


@given(content=st.recursive(st.none() | st.integers() | st.text(), lambda part: st.dictionaries(st.text(), part)))
def test_no_content_of_an_index_ends_in_a_traceback(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("index") / INDEX
    for held in (content, {"weight_map": content}):
        path.write_text(json.dumps(held))
        with suppress(TrainerFailure):
            assert all("/" not in shard for shard in weight_map(path, "s3://models/tiny").values())


def test_an_index_of_another_model_is_refused(make_bundle: MakeBundle, model: Path) -> None:
    names = split(model)
    write(model, {INDEX: {"weight_map": names | {"model.layers.7.mlp.up_proj.weight": names["model.norm.weight"]}}})
    assert "names the tensor model.layers.7.mlp.up_proj.weight, but none of its files" in refused(make_bundle, model)[1]


def test_shards_of_two_saves_are_refused(make_bundle: MakeBundle, model: Path) -> None:
    names = split(model)
    weights = load_file(model / "model-00001-of-00002.safetensors")
    save_file(weights, model / "old.safetensors", {"format": "pt"})
    write(model, {INDEX: {"weight_map": names | {next(iter(weights)): "old.safetensors"}}})
    reason, message = refused(make_bundle, model)
    assert reason is FailureReason.MODEL_UNSUPPORTED
    assert "is in two of the files" in message


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"],
            "only shards (model-00001-of-00003.safetensors and 1 more, only 2 of 3) without their index "
            f"{INDEX}. Add the index to this folder or to a copy. Take it from the source of the model, or create it",
        ),
        (["model-00001-of-00001.safetensors", "consolidated.safetensors"], "only shards (model-00001-of"),
        (["consolidated.safetensors"], "only consolidated.safetensors, which has the layout of Mistral"),
        (["consolidated-00001-of-00002.safetensors"], "convert_mistral_weights_to_hf.py"),
        (["model.fp16.safetensors"], "only model.fp16.safetensors. If that file is the whole model, rename it"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "only the weights of an adapter. Add the base model's",
        ),
        (["checkpoint-9/model.safetensors"], "/model/checkpoint-9. Use that folder."),
        (["optimizer.pt", "training_args.bin", "pytorch_model.bin"], "only pytorch_model.bin. Load the model with Tra"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "only pytorch_model-00001-of-00002.bin"),
        (["model-Q4_K_M.gguf"], "only model-Q4_K_M.gguf. Load the"),
    ],
)
def test_weights_in_another_layout_are_named_with_the_remedy(
    make_bundle: MakeBundle, model: Path, weights: list[str], said: str
) -> None:
    (model / "model.safetensors").unlink()
    write(model, dict.fromkeys(weights, ""))
    reason, message = refused(make_bundle, model)
    assert reason is FailureReason.MODEL_UNSUPPORTED
    assert said in message


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "Set spec.model.uri to the adapter's base model. To continue training the adapter, set",
        ),
        (["checkpoint-500/config.json"], "but there is one in"),
        (["params.json", "consolidated.00.pth"], "Use the model in the layout of Transformers"),
        ([], "the folder is empty or does not exist"),
    ],
)
def test_the_message_about_a_folder_without_config_json_names_its_content(
    make_bundle: MakeBundle, tmp_path: Path, files: list[str], said: str
) -> None:
    write(tmp_path / "found", dict.fromkeys(files, ""))
    reason, message = refused(make_bundle, tmp_path / "found")
    assert reason is FailureReason.MODEL_NOT_FOUND
    assert said in message


def test_a_tokenizer_that_needs_custom_code_is_refused_with_the_cause(make_bundle: MakeBundle, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    write(model, {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}})
    assert (
        "needs custom code (auto_map in tokenizer_config.json), which this operator never runs"
        in (refused(make_bundle, model)[1])
    )
