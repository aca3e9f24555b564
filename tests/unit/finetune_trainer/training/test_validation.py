"""Validation during training: when it measures, which weights it keeps, and early stopping."""

from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method, MethodType
from finetune_api.spec.training import EarlyStopping, Publish, Training
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.trainable import as_published, attach_lora, make_trainable, trainable_parameters
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness import heartbeat
from finetune_trainer.pod.liveness.heartbeat import beats
from finetune_trainer.training import validation as module
from finetune_trainer.training.validation import KeptWeights, Validation, without_gain
from tests.unit.finetune_trainer import small_runs
from tests.unit.finetune_trainer.small_runs import examples, fresh_accelerator, tiny_llama

ROWS = examples([24, 7, 40])


def validation(folder: Path, publish: Publish = Publish.BEST, stopping: EarlyStopping | None = None) -> Validation:
    resolved = small_runs.resolved(
        learning_rate=1e-3, total_steps=10, micro_batch_tokens=64, evaluate_every=4, publish=publish
    )
    return Validation(ROWS, Training(early_stopping=stopping), resolved, fresh_accelerator(), folder)


def says(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Makes the measurements return these losses in turn."""
    given = iter(losses)
    monkeypatch.setattr(module, "row_losses", lambda *_: (np.array([next(given)]), np.array([1])))


def test_the_loss_is_measured_at_every_interval_and_after_the_last_step(tmp_path: Path) -> None:
    assert [step for step in range(1, 11) if validation(tmp_path).due(step)] == [4, 8, 10]


def test_the_loss_is_the_mean_over_the_rows_learned_tokens(tmp_path: Path) -> None:
    model = attach_lora(tiny_llama(torch.float32), Method.model_validate({"lora": {"dropout": 0.5}}), seed=0).train()
    point = validation(tmp_path).measure(model, 4)
    with torch.no_grad():
        expected = token_losses(model.eval(), micro_batch(ROWS, model.device)).mean().item()
    assert point.loss == pytest.approx(expected, rel=1e-6)
    assert (point.step, point.seconds > 0) == (4, True)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, [nan])
    with pytest.raises(TrainerFailure, match="validation rows is not a finite number after step 4") as caught:
        validation(tmp_path).measure(tiny_llama(torch.float32), 4)
    assert (caught.value.reason, caught.value.step) == (FailureReason.LOSS_DIVERGED, 4)


@pytest.mark.parametrize(
    ("publish", "losses", "published"),
    [
        (Publish.BEST, [3.0, 1.0, 2.0], 8),
        (Publish.BEST, [3.0, 2.0, 1.0], 10),
        (Publish.BEST, [1.0, 1.0, 1.0], 4),
        (Publish.LAST, [3.0, 1.0, 2.0], 10),
    ],
)
@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_the_weights_that_are_published(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    publish: Publish,
    losses: list[float],
    published: int,
    method: MethodType,
) -> None:
    says(monkeypatch, losses)
    model = make_trainable(tiny_llama(torch.float32), Method(), method, seed=0)
    run = validation(tmp_path, publish)
    weights = {}
    for step in (4, 8, 10):
        for parameter in trainable_parameters(model):
            parameter.data += 0.1
        run.measure(model, step)
        weights[step] = [parameter.detach().clone() for parameter in trainable_parameters(model)]
    run.finish(model)
    trained = trainable_parameters(model)
    as_published(model)
    for parameter, expected in zip(trained, weights[published], strict=True):
        assert torch.equal(parameter, expected.to(parameter.dtype))


def test_weights_are_saved_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    kept = KeptWeights(tmp_path / "best.safetensors")
    kept.keep(model, 1)
    before = [parameter.detach().clone() for parameter in trainable_parameters(model)]

    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    for parameter in trainable_parameters(model):
        parameter.data += 1
    with pytest.raises(OSError, match="No space"):
        kept.keep(model, 1)
    kept.restore(model)
    assert all(torch.equal(a, b) for a, b in zip(before, trainable_parameters(model), strict=True))


def test_the_limit_of_a_stall_grows_with_the_weights_while_they_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    size = sum(parameter.numel() * 4 for parameter in trainable_parameters(model))
    monkeypatch.setattr(heartbeat, "SLOW_DISK", size / 1000)
    limits = []
    write = module.write_tensors

    def watched(*arguments: Any) -> None:
        limits.append(heartbeat.patience(60))
        write(*arguments)

    monkeypatch.setattr(module, "write_tensors", watched)
    before = beats()
    KeptWeights(tmp_path / "best.safetensors").keep(model, 1)
    assert limits == [heartbeat.LEAST_SECONDS + 1000]
    assert beats() - before >= len(trainable_parameters(model)), "each copy of a weight is a sign of life"


def test_every_weight_that_is_restored_is_a_sign_of_life(tmp_path: Path) -> None:
    model = attach_lora(tiny_llama(torch.float32), Method(), seed=0)
    kept = KeptWeights(tmp_path / "best.safetensors")
    kept.keep(model, 1)
    before = beats()
    kept.restore(model)
    assert beats() - before == len(trainable_parameters(model))


@pytest.mark.parametrize(
    ("losses", "min_delta", "waited"),
    [
        ([], 0.0, 0),
        ([2.0], 0.0, 0),
        ([2.0, 1.0, 1.0, 1.5], 0.0, 2),
        ([2.0, 1.95, 1.91], 0.1, 2),
        ([2.0, 1.95, 1.89], 0.1, 0),
        ([2.0, 3.0, 1.0], 0.0, 0),
    ],
)
def test_patience_counts_measurements_without_an_improvement(
    losses: list[float], min_delta: float, waited: int
) -> None:
    assert without_gain(losses, min_delta) == waited


def test_training_ends_when_the_patience_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, [2.0, 1.0, 1.1, 1.2])
    run, model = validation(tmp_path, stopping=EarlyStopping(patience=2)), tiny_llama(torch.float32)
    over = []
    for step in (2, 4, 6, 8):
        run.measure(model, step)
        over.append(run.over)
    assert over == [False, False, False, True]


def test_without_early_stopping_training_never_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0])
    run = validation(tmp_path)
    for step in range(5):
        run.measure(tiny_llama(torch.float32), step)
    assert not run.over
