"""Names of layers that the model does not have are found before a GPU is held."""

from pathlib import Path

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.recipe import prepare
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle


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


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "layers.0.input_layernorm"])
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
