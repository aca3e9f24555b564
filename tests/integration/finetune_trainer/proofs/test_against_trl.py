"""Step by step, our loop's loss is that of TRL's SFTTrainer: same rows, order, first adapter and decay groups."""

from pathlib import Path

import pytest
import torch

from finetune_api.method import Method, MethodType
from finetune_trainer.attention import NAME
from finetune_trainer.model import load_model
from finetune_trainer.trainable import attach_lora
from tests.integration.finetune_trainer.proofs.runs import (
    STEPS,
    counting_rows,
    in_fp32,
    our_steps,
    resolved,
    trl_losses,
)

ROWS = counting_rows([24, 7, 40, 12, 33, 18, 9, 51, 28, 15, 62, 5, 37, 21, 44, 11, 30, 8, 56, 26, 19, 3, 48, 13])


@pytest.mark.parametrize(("method", "tolerance"), [(MethodType.LORA, 1e-5), (MethodType.QLORA, 1e-3)])
def test_the_loss_of_each_of_30_steps_is_that_of_trl(
    method: MethodType, tolerance: float, tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = resolved(method)
    ours = [step.loss for step in our_steps(_adapted(tiny_model_dir, method), ROWS, settings)]
    theirs_model = _adapted(tiny_model_dir, method)
    theirs_model.get_base_model().set_attn_implementation("sdpa")
    theirs = trl_losses(theirs_model, ROWS, settings, tiny_model_dir, tmp_path)
    assert len(theirs) == STEPS
    assert ours == pytest.approx(theirs, rel=tolerance)
    assert ours[-1] < 0.95 * ours[0], "a run that learns nothing proves nothing"


def _adapted(folder: Path, method: MethodType) -> torch.nn.Module:
    base = in_fp32(load_model(folder, method, torch.device("cpu")))
    assert base.config._attn_implementation == NAME
    return attach_lora(base, Method(type=method), seed=0)
