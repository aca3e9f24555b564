"""Names of layers that the model does not have are found before a GPU is held."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.base.rehearsal import Answer, Finding
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight import rehearsal
from finetune_trainer.preflight.recipe import prepare
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model, save_tokenizer
from tests.unit.finetune_trainer.model_families import Family, gpt2, llama_tied, save_family


@pytest.mark.parametrize("names", [["all-linear"], ["q_proj", "v_proj"], ["self_attn.o_proj"]])
def test_layers_the_model_has_are_fine(make_bundle: MakeBundle, names: list[str], tmp_path: Path) -> None:
    bundle = make_bundle(method={"lora": {"targetModules": names}})
    prepare(bundle, open_storage(bundle), Findings(), tmp_path)


@pytest.mark.parametrize("name", ["query_key_value", "_proj", "norm"])
def test_a_name_no_layer_ends_with_is_refused_with_those_there_are(
    make_bundle: MakeBundle, name: str, tmp_path: Path
) -> None:
    bundle = make_bundle(method={"lora": {"targetModules": ["q_proj", name]}})

    with pytest.raises(
        TrainerFailure, match=rf"the model has no layer {name}\. Use names of its layers: .*q_proj"
    ) as failure:
        prepare(bundle, open_storage(bundle), Findings(), tmp_path)

    assert failure.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "head", "norm", "layers.0.input_layernorm"])
def test_any_layer_with_weights_can_be_trained_whole(make_bundle: MakeBundle, tmp_path: Path, name: str) -> None:
    bundle = make_bundle(method={"lora": {"modulesToSave": [name]}})
    prepare(bundle, open_storage(bundle), Findings(), tmp_path)


def test_a_layer_to_train_whole_that_is_not_there_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(method={"lora": {"modulesToSave": ["wte"]}})
    with pytest.raises(
        TrainerFailure,
        match=r"lora\.modulesToSave: the model has no layer wte\. Use names of its layers: .*embed_tokens",
    ):
        prepare(bundle, open_storage(bundle), Findings(), tmp_path)


def of_family(make_bundle: MakeBundle, family: Family, folder: Path, **method: Any) -> Bundle:
    save_tokenizer(save_family(family, folder))
    return make_bundle(model={"uri": str(folder)}, method=method)


def test_a_tied_output_head_can_be_trained_whole(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = of_family(make_bundle, llama_tied, tmp_path / "tied", lora={"modulesToSave": ["lm_head"]})
    prepare(bundle, open_storage(bundle), Findings(), tmp_path)


@pytest.mark.parametrize("name", ["wte", "lm_head"])
def test_a_tied_embedding_that_peft_would_train_in_one_place_is_refused(
    make_bundle: MakeBundle, tmp_path: Path, name: str
) -> None:
    bundle = of_family(make_bundle, gpt2, tmp_path / "gpt2", lora={"modulesToSave": [name]})
    with pytest.raises(TrainerFailure, match=f"{name} selects transformer.wte, whose weights are also the output head"):
        prepare(bundle, open_storage(bundle), Findings(), tmp_path)


def test_a_layer_that_qlora_quantizes_cannot_be_trained_whole(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(method={"type": "QLoRA", "lora": {"modulesToSave": ["mlp"], "targetModules": ["q_proj"]}})
    with pytest.raises(TrainerFailure, match=r"modulesToSave selects .*_proj, which QLoRA quantizes to 4 bits"):
        prepare(bundle, open_storage(bundle), Findings(), tmp_path)


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests tune no kind of model."""
    monkeypatch.setattr(rehearsal, "PROVEN", ())


UNKNOWN = Finding(reason=FailureReason.MODEL_UNSUPPORTED, finding="Its layers are not known.", remedy=None)


@pytest.mark.parametrize(("memory", "refused"), [("80Gi", False), ("2144Mi", True)])
def test_layers_that_are_not_known_refuse_a_job_only_if_its_weights_are_sharded(
    make_bundle: MakeBundle, tmp_path: Path, unproven: None, memory: str, refused: bool
) -> None:
    save_model(tmp_path / "deep", hidden_size=256, intermediate_size=512, num_hidden_layers=16)
    save_tokenizer(tmp_path / "deep")
    bundle = make_bundle(
        model={"uri": str(tmp_path / "deep")},
        compute={"gpusPerNode": 8},
        method={"type": "Full"},
        gpuTypes=[{"name": "any", "memory": memory}],
    )
    prepared = prepare(bundle, open_storage(bundle), Findings(), tmp_path / "known")
    assert [estimate.sharded for estimate in prepared.preflight.estimate or []] == [True if refused else None]
    said = "Each of the 8 GPUs needs this memory, because a model whose layers are not known cannot be sharded."
    with pytest.raises(TrainerFailure, match=said) if refused else nullcontext():
        prepare(bundle, open_storage(bundle), Findings(), tmp_path, lambda *_: Answer(layered=False))


def test_what_the_training_would_raise_is_raised_before_the_rows_are_read(
    make_bundle: MakeBundle, tmp_path: Path, unproven: None
) -> None:
    bundle = make_bundle()
    findings = Findings()
    with pytest.raises(TrainerFailure, match="not known"):
        prepare(bundle, open_storage(bundle), findings, tmp_path, lambda *_: Answer(failure=UNKNOWN))
    assert not findings.rows
