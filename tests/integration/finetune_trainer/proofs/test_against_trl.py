"""Step by step, our loop's loss is that of TRL's SFTTrainer: same rows, order, first adapter and decay groups."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.spec.method import Method
from finetune_trainer.model.layers.attention import NAME
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.trainable import make_trainable
from tests.integration.finetune_trainer.proofs.runs import (
    STEPS,
    counting_rows,
    in_fp32,
    our_losses,
    resolved,
    trl_losses,
)
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer

ROWS = counting_rows([24, 7, 40, 12, 33, 18, 9, 51, 28, 15, 62, 5, 37, 21, 44, 11, 30, 8, 56, 26, 19, 3, 48, 13])
LORA = {"type": "LoRA"}
# What decays and what does not, side by side: matrices with biases and norms.
MORE_THAN_MATRICES = LORA | {"lora": {"bias": "All", "modulesToSave": ["input_layernorm", "norm"]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose linear layers have biases."""
    save_tokenizer(tmp_path / "model")
    save_model(tmp_path / "model", attention_bias=True, mlp_bias=True)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        pytest.param(LORA, 1e-5, id="LoRA"),
        pytest.param(MORE_THAN_MATRICES, 1e-5, id="LoRA, biases and norms"),
        pytest.param({"type": "Full"}, 1e-5, id="Full"),
        pytest.param({"type": "QLoRA"}, 1e-3, id="QLoRA"),
    ],
)
def test_the_loss_of_each_of_30_steps_is_that_of_trl(
    method: dict[str, Any], tolerance: float, folder: Path, tmp_path: Path
) -> None:
    settings = resolved(Method.model_validate(method).type)
    ours = our_losses(trainable(folder, method), ROWS, settings)
    theirs_model = trainable(folder, method)
    theirs_model.set_attn_implementation("sdpa")
    theirs = trl_losses(theirs_model, ROWS, settings, folder, tmp_path)
    assert len(theirs) == STEPS
    assert ours == pytest.approx(theirs, rel=tolerance)
    assert ours[-1] < 0.95 * ours[0], "a run that learns nothing proves nothing"


def trainable(folder: Path, settings: dict[str, Any]) -> PreTrainedModel | PeftModel:
    method = Method.model_validate(settings)
    base = in_fp32(load_model(folder, method.type, torch.device("cpu")))
    assert base.config._attn_implementation == NAME
    return make_trainable(base, method, method.type, seed=0)
