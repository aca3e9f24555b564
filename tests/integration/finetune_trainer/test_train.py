"""The whole training, from prepared data to published results, on a tiny model."""

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel

from finetune_api.spec.method import MethodType
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.preflight.recipe import preflight
from finetune_trainer.storage.job_storage import open_storage
from finetune_trainer.train.recipe import train
from tests.integration.finetune_trainer.trainings import applied, prepare, run
from tests.unit.finetune_trainer.conftest import S3, MakeBundle, save_tokenizer, sum_rows, write_rows
from tests.unit.finetune_trainer.model_families import Family, falcon, mamba, qwen3_5, save_family

METHODS = [MethodType.LORA, MethodType.QLORA, MethodType.FULL]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_compares_and_publishes_an_adapter_that_peft_loads(
    make_bundle: MakeBundle, method: MethodType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(method={"type": method}, training={"learningRate": 0.01, "epochs": 3})
    prepared = prepare(bundle)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    capsys.readouterr()
    verdict, writer = run(bundle)

    status = writer.intent
    assert status.training
    assert status.evaluation
    assert status.artifacts
    assert status.evaluation.rows == len(prepared.test) == 12
    assert status.evaluation.base
    assert status.evaluation.tuned
    assert (status.evaluation.tuned.loss or 9) < (status.evaluation.base.loss or 0), "it learned"
    assert status.evaluation.verdict == verdict
    assert (status.training.step, status.training.device) == (prepared.resolved.total_steps, "cpu")
    assert reasons(applied(capsys.readouterr().out)) == [
        "LoadingModel",
        "EvaluatingBase",
        "Training",
        "TrainingSucceeded",
        "EvaluationSucceeded",
    ]
    assert not Path(work_prefix(bundle)).exists()

    AcceleratorState._reset_state(reset_partial_state=True)
    if method is MethodType.FULL:
        assert status.artifacts.model
        tuned = load_model(Path(status.artifacts.model), method, torch.device("cpu")).eval()
    else:
        assert status.artifacts.adapter
        base = load_model(Path(bundle.spec.model.uri), method, torch.device("cpu"))
        tuned = PeftModel.from_pretrained(base, status.artifacts.adapter).eval()
    batch = micro_batch(prepared.test, tuned.device)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        loss = token_losses(tuned, batch).mean().item()
    assert loss == pytest.approx(status.evaluation.tuned.loss, rel=1e-4), "what is on disk is what was measured"


@pytest.mark.thorough_for("qwen3_5", "mamba")
@pytest.mark.parametrize("family", [falcon, qwen3_5, mamba])
def test_a_model_that_processes_each_row_alone_is_trained_measured_and_merged(
    make_bundle: MakeBundle, family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_family(family, tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    bundle = make_bundle(
        model={"uri": str(tmp_path / "model")},
        method={"type": "LoRA"},
        training={"learningRate": 0.01, "epochs": 3},
        output={"uri": str(tmp_path / "out"), "merge": True},
    )
    prepare(bundle)
    status = run(bundle)[1].intent
    assert "so each row is processed alone." in capsys.readouterr().out
    assert status.training
    assert status.training.packed is False
    assert status.evaluation
    assert status.evaluation.base
    assert status.evaluation.tuned
    assert (status.evaluation.tuned.loss or 9) < (status.evaluation.base.loss or 0), "it learned"
    assert status.evaluation.merged
    assert not status.evaluation.merged.changed
    assert status.artifacts
    report = Path(status.artifacts.report).read_text()
    assert "micro-batches of one row" in report


def test_training_stops_early_without_improvement_and_publishes_the_best_weights(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(
        dataset={"train": make_bundle().spec.dataset.train, "split": {"validation": 0.2}},
        training={
            "learningRate": 0.01,
            "epochs": 3,
            "evaluateEvery": 2,
            # No loss falls by a hundred nats: the second measurement is the last one.
            "earlyStopping": {"patience": 1, "minDelta": 100},
        },
    )
    prepared = prepare(bundle)
    assert len(prepared.validation) == 12
    _, writer = run(bundle)
    training = writer.intent.training
    assert training
    assert (training.step, training.best_step, prepared.resolved.total_steps) == (4, 4, 15)
    assert training.best_validation_loss == training.validation_loss
    said = next(condition for condition in writer.intent.conditions or [] if condition.type == "Trained")
    assert said.message.startswith("4 of 15 steps in ")
    assert "Training stopped early, because the validation loss no longer improved. The validation loss" in said.message


def reasons(statuses: list[dict[str, Any]]) -> list[str]:
    """The reasons the conditions went through, in order."""
    found = [status["conditions"][-1]["reason"] for status in statuses]
    return [reason for i, reason in enumerate(found) if i == 0 or reason != found[i - 1]]


def _no_network(*_: Any) -> NoReturn:
    raise AssertionError("the trainer opened a connection")


def test_a_run_on_s3_leaves_only_the_results(
    s3: S3, make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    s3.bucket("train-all")
    for path in (*tiny_model_dir.iterdir(), write_rows(tmp_path / "rows.jsonl", sum_rows(30))):
        s3.client().upload_file(str(path), "train-all", f"input/{path.name}")
    bundle = make_bundle(
        job={"namespace": "team", "name": "tickets", "uid": "u-1"},
        model={"uri": "s3://train-all/input"},
        dataset={"train": [{"uri": "s3://train-all/input/rows.jsonl"}]},
        output={"uri": "s3://train-all/out"},
        storages=[{"buckets": ["train-*"], "endpoint": s3.endpoint, "credentialsSecretName": "owner"}],
    )
    storage = open_storage(bundle, s3.secrets_dir)
    preflight(bundle, storage, StatusWriter(None, "preflight"))
    writer = StatusWriter(None, "attempt-1")
    train(bundle, storage, writer, attempt=1)
    there = storage.list_folder("s3://train-all/out")
    manifest = json.loads(storage.read_bytes("s3://train-all/out/manifest.json"))
    assert {file["path"]: file["size"] for file in manifest["files"]} == {
        path: size for path, size in there.items() if path != "manifest.json"
    }
    assert writer.intent.artifacts
    assert writer.intent.artifacts.adapter == "s3://train-all/out/adapter"


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.QLORA])
def test_merged_weights_are_published_and_measured_again(
    make_bundle: MakeBundle, method: MethodType, tmp_path: Path
) -> None:
    bundle = make_bundle(
        rows=sum_rows(30), method={"type": method}, output={"uri": str(tmp_path / "output"), "merge": True}
    )
    prepared = prepare(bundle)
    _, writer = run(bundle)
    assert writer.intent.evaluation
    assert writer.intent.artifacts
    merged = writer.intent.evaluation.merged
    assert merged
    assert writer.intent.artifacts.merged
    folder = Path(writer.intent.artifacts.merged)
    AcceleratorState._reset_state(reset_partial_state=True)
    model = load_model(folder, MethodType.LORA, torch.device("cpu"))
    batch = micro_batch(prepared.test, model.device)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert token_losses(model, batch).mean().item() == pytest.approx(merged.loss, rel=1e-4)
    manifest = json.loads(Path(writer.intent.artifacts.manifest).read_text())
    files = {file["path"] for file in manifest["files"]}
    assert {"merged/model.safetensors", "merged/README.md", "merged/prompt_format.json"} <= files
    assert manifest["evaluation"]["merged"]["message"] == merged.message


def test_two_runs_give_the_same_adapter(make_bundle: MakeBundle, tmp_path: Path) -> None:
    adapters = []
    for name in ("first", "second"):
        bundle = make_bundle(output={"uri": str(tmp_path / name)})
        prepare(bundle)
        run(bundle)
        AcceleratorState._reset_state(reset_partial_state=True)
        adapters.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
