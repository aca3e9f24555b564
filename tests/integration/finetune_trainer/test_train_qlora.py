"""Under QLoRA the base model is measured in bf16 if that fits into memory, and otherwise in 4 bits."""

import json
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from finetune_api.bundle import Bundle
from finetune_api.spec.method import MethodType
from finetune_trainer.evaluation import base_measurement
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.trainable import make_trainable
from finetune_trainer.train import tuning as module
from tests.integration.finetune_trainer.trainings import applied, prepare, run
from tests.unit.finetune_trainer.conftest import MakeBundle


def test_qlora_measures_the_base_model_in_bfloat16_with_one_model_in_memory_at_a_time(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[ReferenceType[PreTrainedModel]] = []

    def load(*arguments: Any) -> PreTrainedModel:
        assert all(earlier() is None for earlier in loaded), "the one before is gone"
        model = load_model(*arguments)
        # What some models bring: greedy answers would not be greedy with it.
        model.generation_config.repetition_penalty = 1.5
        loaded.append(ref(model))
        return model

    monkeypatch.setattr(base_measurement, "load_model", load)
    monkeypatch.setattr(module, "make_trainable", lambda model, *rest: require_plain(make_trainable(model, *rest)))
    found = {}
    for method in (MethodType.LORA, MethodType.QLORA):
        bundle = make_bundle(method={"type": method}, output={"uri": str(tmp_path / method)})
        prepared = prepare(bundle)
        verdict, writer = run(bundle)
        AcceleratorState._reset_state(reset_partial_state=True)
        loaded.clear()
        assert writer.intent.evaluation
        found[method] = writer.intent.evaluation
    assert found[MethodType.LORA].quantized is None
    both = found[MethodType.QLORA]
    assert (both.base, both.few_shot) == (found[MethodType.LORA].base, found[MethodType.LORA].few_shot)
    assert "for the base model in bfloat16" in verdict
    assert both.base
    assert both.base.loss
    assert both.quantized
    assert both.quantized.loss == pytest.approx(four_bit_loss(bundle, prepared), rel=1e-4)
    assert both.quantized.loss_change == pytest.approx(both.quantized.loss - both.base.loss, abs=1e-5)
    assert both.quantized.loss_change != 0
    manifest = json.loads((Path(bundle.spec.output.uri) / "manifest.json").read_text())
    compared = manifest["comparison"]["metrics"]["Loss"]["quantized"]["value"]
    assert compared == pytest.approx(both.quantized.loss, abs=1e-4), "the comparison knows it"


def require_plain(model: PreTrainedModel) -> PreTrainedModel:
    assert model.generation_config
    assert model.generation_config.repetition_penalty in (None, 1.0), "it answers as the base model did"
    return model


def four_bit_loss(bundle: Bundle, prepared: Prepared) -> float:
    model = load_model(Path(bundle.spec.model.uri), MethodType.QLORA, torch.device("cpu")).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return token_losses(model, micro_batch(prepared.test, model.device)).mean().item()


def test_if_the_base_model_does_not_fit_in_bf16_it_is_measured_in_4_bits_and_the_status_says_so(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(method={"type": "QLoRA"}, compute={"memory": "1Gi"})
    prepared = prepare(bundle)
    needed = prepared.resolved.base_memory
    capsys.readouterr()
    verdict, writer = run(bundle)
    evaluation = writer.intent.evaluation
    assert evaluation
    assert evaluation.base
    assert evaluation.base.loss == pytest.approx(four_bit_loss(bundle, prepared), rel=1e-4)
    assert evaluation.quantized
    assert evaluation.quantized.loss_change is None
    why = f"in 4 bits, because the base model in bfloat16 needs about {needed}, and spec.compute.memory is 1Gi."
    assert f"measured {why}" in evaluation.quantized.message
    assert "the base model in 4 bits" in verdict
    said = [status["conditions"][-1]["message"] for status in applied(capsys.readouterr().out)]
    assert f"Answering 12 held-out rows with the base model {why}" in said
    assert why in (Path(bundle.spec.output.uri) / "report.html").read_text()


def test_running_out_of_memory_while_measuring_the_base_in_bf16_does_not_fail_the_job(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests have no GPU. This is what PyTorch raises if its memory is full.
    def load(folder: Path, method: MethodType, *rest: Any) -> PreTrainedModel:
        if method is not MethodType.QLORA:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return load_model(folder, method, *rest)

    monkeypatch.setattr(base_measurement, "load_model", load)
    bundle = make_bundle(method={"type": "QLoRA"})
    prepare(bundle)
    _, writer = run(bundle)
    assert writer.intent.evaluation
    assert writer.intent.evaluation.quantized
    assert writer.intent.evaluation.quantized.message.startswith(
        "The base model was measured in 4 bits, because the base model in bfloat16 ran out of GPU memory."
    )
