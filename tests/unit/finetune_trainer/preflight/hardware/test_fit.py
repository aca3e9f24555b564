"""The predicted memory of a job on each GPU type, and the failure of a job that does not fit."""

from pathlib import Path

import pytest

from finetune_api.quantity import gibibytes
from finetune_api.reasons import FailureReason
from finetune_api.spec.method import MethodType
from finetune_trainer.base.base_model import inspect_model
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.preflight.hardware.prediction import data_size, loads, setups_of
from finetune_trainer.sizing.memory import base_memory, predict
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model, save_tokenizer
from tests.unit.finetune_trainer.preflight_runs import failure, run, written


def test_the_status_contains_the_estimate(make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = {"name": "h100-80gb", "memory": "81559Mi", "pricePerHour": "3.60"}
    run(make_bundle(gpuTypes=[gpu]))
    status = written(capsys)
    assert status.preflight
    (estimate,) = status.preflight.estimate or []
    assert (estimate.gpu_type, estimate.fits, estimate.memory) == ("h100-80gb", True, "1.0Gi")
    assert estimate.seconds
    assert float(estimate.cost or 0) == pytest.approx(estimate.seconds / 1000, abs=0.01)


def test_a_job_that_does_not_fit_ends_before_anything_is_written(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(gpuTypes=[{"name": "tiny", "memory": "1Gi"}])
    found = failure(bundle)
    assert found.reason is FailureReason.DOES_NOT_FIT
    assert "of GPU memory, but tiny has 1Gi. The method is QLoRA, the model has" in found.message
    assert "tokens. No method would fit. Choose a smaller model, or use" in found.message
    status = written(capsys)
    assert status.preflight
    (estimate,) = status.preflight.estimate or []
    assert (estimate.fits, estimate.seconds) == (False, None)
    assert not (Path(work_prefix(bundle)) / "prepared").exists()


def test_auto_chooses_qlora_if_only_qlora_fits(make_bundle: MakeBundle, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "model")
    save_model(tmp_path / "model", hidden_size=512, intermediate_size=2048)
    model = {"uri": str(tmp_path / "model")}
    bundle = make_bundle(model=model)
    prepared = run(bundle)
    assert prepared.resolved.method is MethodType.LORA, "nobody says what the GPUs hold"
    assert prepared.resolved.base_memory is None
    shape = inspect_model(open_storage(bundle), model["uri"], tmp_path / "scratch").shape
    size = data_size({"train": prepared.train, "test": prepared.test}, 200)

    def needed(method: MethodType) -> int:
        resolved = prepared.resolved.model_copy(update={"method": method})
        return predict(shape, setups_of(bundle.spec, resolved, shape)[-1], loads(size, 8, resolved)[-1]).total

    between = (needed(MethodType.LORA) + needed(MethodType.QLORA)) // 2
    assert needed(MethodType.QLORA) < between < needed(MethodType.LORA)
    gpu = {"name": "small", "memory": str(between)}
    found = run(make_bundle(model=model, gpuTypes=[gpu], output={"uri": str(tmp_path / "auto")}))
    assert found.resolved.method is MethodType.QLORA
    assert found.resolved.base_memory == gibibytes(base_memory(shape, found.resolved.micro_batch_tokens))
    assert "more than small has" in (found.resolved.method_reason or "")
    assert [estimate.fits for estimate in found.preflight.estimate or []] == [True]
