"""A job that begins with an earlier one's adapter: trained further, or only evaluated."""

from pathlib import Path
from shutil import copytree

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from tests.integration.finetune_trainer.trainings import prepare, run
from tests.unit.finetune_trainer.conftest import MakeBundle


def test_a_job_goes_on_from_an_earlier_ones_adapter(make_bundle: MakeBundle, tmp_path: Path) -> None:
    losses = []
    for name, lora in (("first", {}), ("second", {"from": str(tmp_path / "first" / "adapter")})):
        bundle = make_bundle(
            method={"type": "LoRA", "lora": lora},
            training={"learningRate": 0.01, "epochs": 3},
            output={"uri": str(tmp_path / name)},
        )
        prepare(bundle)
        _, writer = run(bundle)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert writer.intent.evaluation
        assert writer.intent.evaluation.tuned
        losses.append(writer.intent.evaluation.tuned.loss or 0)
    assert losses[1] < losses[0]


def test_an_adapter_that_exists_is_evaluated_without_training(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first = make_bundle(method={"type": "LoRA", "lora": {"r": 4, "alpha": 8}}, training={"learningRate": 0.05})
    prepare(first)
    _, trained = run(first)
    AcceleratorState._reset_state(reset_partial_state=True)
    adapter = Path(first.spec.output.uri) / "adapter"
    again = make_bundle(
        method={"type": "None", "lora": {"from": str(adapter)}}, output={"uri": str(tmp_path / "drift")}
    )
    assert prepare(again).resolved.total_steps == 0
    weights = adapter / "adapter_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    verdict, writer = run(again)
    was, now = trained.intent.evaluation, writer.intent.evaluation
    assert was
    assert now
    assert was.tuned
    assert now.tuned
    assert now.tuned.loss == pytest.approx(was.tuned.loss, rel=1e-4), "the adapter that preflight read"
    assert now.base == was.base
    assert "Training took" not in verdict
    assert writer.intent.training
    assert writer.intent.training.step == 0
    assert (tmp_path / "drift" / "report.html").exists()


def test_a_job_whose_base_model_was_replaced_after_preflight_fails_before_it_is_measured(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(copytree(tiny_model_dir, tmp_path / "model"))
    bundle = make_bundle(model={"uri": str(folder)})
    prepare(bundle)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert weights.stat().st_size == size, "another model of the same shape"
    with pytest.raises(TrainerFailure, match=r"model\.safetensors was replaced after preflight had read it") as caught:
        run(bundle)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND
    assert "EvaluatingBase" not in capsys.readouterr().out
