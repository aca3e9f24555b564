"""The whole training, from prepared data to published results, on a tiny model."""

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from weakref import ReferenceType, ref

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.bundle import Bundle
from finetune_api.method import MethodType
from finetune_api.reasons import FAILURES, FailureReason
from finetune_trainer import train as module
from finetune_trainer.__main__ import main
from finetune_trainer.assessment import Assessor
from finetune_trainer.batches import micro_batch
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.loss import token_losses
from finetune_trainer.model import load_model
from finetune_trainer.preflight import preflight
from finetune_trainer.prepared import Prepared, read_prepared, work_prefix
from finetune_trainer.scratch import scratch_folder
from finetune_trainer.status_writer import StatusWriter
from finetune_trainer.storage import open_storage
from finetune_trainer.termination import _Stop
from finetune_trainer.train import train
from finetune_trainer.trainable import make_trainable
from finetune_trainer.training_loop import Step, training_steps
from tests.unit.finetune_trainer.conftest import S3, MakeBundle, sum_rows, write_rows

METHODS = [MethodType.LORA, MethodType.QLORA, MethodType.FULL]


def run(bundle: Bundle) -> tuple[str, StatusWriter]:
    writer = StatusWriter(None, "attempt-1")
    return train(bundle, open_storage(bundle), writer, attempt=1), writer


def prepare(bundle: Bundle) -> Prepared:
    preflight(bundle, open_storage(bundle), StatusWriter(None, "preflight"))
    with scratch_folder("test-") as scratch:
        return read_prepared(open_storage(bundle), bundle, scratch)


def applied(log: str) -> list[dict[str, Any]]:
    """Every status the log says was applied."""
    lines = (line for line in log.splitlines() if line.startswith("attempt-1: "))
    return [json.loads(line.removeprefix("attempt-1: ")) for line in lines]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_compares_and_publishes_what_others_load(
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


def test_under_qlora_the_base_model_is_measured_as_it_would_be_served_one_model_at_a_time(
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

    monkeypatch.setattr(module, "load_model", load)
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
    assert "against the base model in bfloat16" in verdict or "prompting the base model in bfloat16" in verdict
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


def test_where_the_base_model_does_not_fit_in_bf16_that_in_4_bits_is_measured_and_it_is_said(
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
    why = f"in 4 bits: in bfloat16 it needs about {needed}, and compute.memory is 1Gi."
    assert f"measured {why}" in evaluation.quantized.message
    assert "the base model in 4 bits" in verdict
    said = [status["conditions"][-1]["message"] for status in applied(capsys.readouterr().out)]
    assert f"Answering 12 held-out rows with the base model {why}" in said
    assert why in (Path(bundle.spec.output.uri) / "report.html").read_text()


def test_a_job_that_trains_in_4_bits_does_not_fail_over_measuring_in_bf16(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No GPU here: what PyTorch raises where one is full.
    def load(folder: Path, method: MethodType, *rest: Any) -> PreTrainedModel:
        if method is not MethodType.QLORA:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return load_model(folder, method, *rest)

    monkeypatch.setattr(module, "load_model", load)
    bundle = make_bundle(method={"type": "QLoRA"})
    prepare(bundle)
    _, writer = run(bundle)
    assert writer.intent.evaluation
    assert writer.intent.evaluation.quantized
    assert writer.intent.evaluation.quantized.message.startswith(
        "The base model was measured in 4 bits: in bfloat16 it ran out of the GPU's memory."
    )


def test_training_ends_early_where_it_no_longer_helps_and_publishes_the_best(make_bundle: MakeBundle) -> None:
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
    assert "stopped early, since the validation loss was lowest" in said.message


def reasons(statuses: list[dict[str, Any]]) -> list[str]:
    """The reasons the conditions went through, in order."""
    found = [status["conditions"][-1]["reason"] for status in statuses]
    return [reason for i, reason in enumerate(found) if i == 0 or reason != found[i - 1]]


def _no_network(*_: Any) -> NoReturn:
    raise AssertionError("the trainer opened a connection")


def test_from_s3_to_s3_it_leaves_the_results_and_nothing_else(
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


def test_two_runs_give_the_same_adapter(make_bundle: MakeBundle, tmp_path: Path) -> None:
    adapters = []
    for name in ("first", "second"):
        bundle = make_bundle(output={"uri": str(tmp_path / name)})
        prepare(bundle)
        run(bundle)
        AcceleratorState._reset_state(reset_partial_state=True)
        adapters.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


def test_a_pod_started_again_after_publishing_only_says_so(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    prepare(bundle)
    verdict, first = run(bundle)
    monkeypatch.setattr(module, "recipe", lambda *_: pytest.fail("it trained again"))
    again, second = run(bundle)
    assert again == verdict
    for part in ("training", "evaluation", "artifacts"):
        was, now = (getattr(writer.intent, part).model_dump(mode="json") for writer in (first, second))
        assert now == was
    assert [condition.status for condition in second.intent.conditions or []] == ["True", "True"]


def test_anothers_output_is_refused_before_anything_is_loaded(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(job={"namespace": "team-a", "name": "tickets", "uid": "uid-1"})
    Path(bundle.spec.output.uri).mkdir()
    (Path(bundle.spec.output.uri) / "manifest.json").write_text('{"job": {"uid": "uid-2"}}')
    assert _failure(bundle) is FailureReason.OUTPUT_OCCUPIED


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_and_without_leave_to_use_the_cpu_it_fails(make_bundle: MakeBundle) -> None:
    prepare(make_bundle())
    assert _failure(make_bundle(allowCPU=False)) is FailureReason.GPU_FAULT


def test_a_failure_in_the_evaluation_leaves_the_training_true(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    prepare(bundle)
    monkeypatch.setattr(Assessor, "assess", lambda *_: 1 / 0)
    writer = StatusWriter(None, "attempt-1")
    with pytest.raises(ZeroDivisionError):
        train(bundle, open_storage(bundle), writer, attempt=1)
    said = {condition.type: (condition.status, condition.reason) for condition in writer.intent.conditions or []}
    assert said == {"Trained": ("True", "TrainingSucceeded"), "Evaluated": ("False", "TrainerCrashed")}
    assert not (Path(bundle.spec.output.uri) / "manifest.json").exists()


def labelled_rows(count: int) -> list[dict[str, str]]:
    """Rows whose answers are one of two labels."""
    return [{"prompt": f"Is {i} even?", "completion": "yes" if i % 2 == 0 else "no"} for i in range(count)]


def test_every_metric_that_fits_is_taken_against_base_and_few_shot(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(rows=labelled_rows(60))
    prepare(bundle)
    capsys.readouterr()
    _, writer = run(bundle)
    told = [status["conditions"][0]["message"] for status in applied(capsys.readouterr().out)]
    assert "Answering 12 held-out rows with the base model and 5 examples, draw 3 of 3." in told
    found = writer.intent.evaluation
    assert found
    for metrics in (found.base, found.few_shot, found.tuned):
        assert metrics
        assert None not in (metrics.exact_match, metrics.macro_f1, metrics.macro_precision, metrics.macro_recall)
    assert found.base
    assert found.few_shot
    assert (found.base.loss is None, found.few_shot.loss is None) == (False, True)
    assert found.decision
    assert found.decision.metric == "ExactMatch"
    assert found.passed is None


def test_a_failed_gate_fails_the_job_and_keeps_its_results_marked(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(evaluation={"gates": [{"metric": "ExactMatch", "min": 1}], "baselines": ["Base"]})
    prepare(bundle)
    writer = StatusWriter(None, "attempt-1")
    with pytest.raises(TrainerFailure, match=r"ExactMatch is 0; a gate wants it at least 1\.") as caught:
        train(bundle, open_storage(bundle), writer, attempt=1)
    assert caught.value.reason is FailureReason.EVALUATION_GATE_FAILED
    said = {condition.type: (condition.status, condition.reason) for condition in writer.intent.conditions or []}
    assert said == {"Trained": ("True", "TrainingSucceeded"), "Evaluated": ("False", "EvaluationGateFailed")}
    output = Path(bundle.spec.output.uri)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["evaluation"]["passed"] is False
    assert manifest["evaluation"]["gates"] == [
        {"metric": "ExactMatch", "bound": "Min", "limit": 1.0, "value": 0.0, "passed": False}
    ]
    assert "not to be used" in (output / "adapter" / "README.md").read_text()
    assert writer.intent.artifacts
    monkeypatch.setattr(module, "recipe", lambda *_: pytest.fail("it trained again"))
    with pytest.raises(TrainerFailure, match="ExactMatch is 0"):
        train(bundle, open_storage(bundle), StatusWriter(None, "attempt-1"), attempt=1)


def unlike(number: int) -> str:
    """An answer like none of the rows that are learned, which becomes less likely."""
    return "@#~" * 8 + str(number)


def test_a_regression_set_is_measured_before_and_after(make_bundle: MakeBundle, tmp_path: Path) -> None:
    general = write_rows(
        tmp_path / "general.jsonl", [{"prompt": f"Say {i}", "completion": unlike(i)} for i in range(9)]
    )
    wish = {"name": "general", "uri": str(general), "metric": "Loss"}
    training = {"learningRate": 0.05, "epochs": 3}
    for name, max_drop, passed in (("strict", 0.0, False), ("lenient", 1000.0, True)):
        evaluation = {"regression": [wish | {"maxDrop": max_drop}], "metrics": ["Loss"]}
        bundle = make_bundle(evaluation=evaluation, training=training, output={"uri": str(tmp_path / name)})
        prepared = prepare(bundle)
        assert [row.answer for row in prepared.regression["general"]] == [unlike(i) for i in range(9)]
        writer = StatusWriter(None, "attempt-1")
        if passed:
            train(bundle, open_storage(bundle), writer, attempt=1)
        else:
            with pytest.raises(TrainerFailure, match="Loss on regression set general went from"):
                train(bundle, open_storage(bundle), writer, attempt=1)
        AcceleratorState._reset_state(reset_partial_state=True)
        found = writer.intent.evaluation
        assert found
        assert found.regression
        assert (found.regression[0].rows, found.regression[0].passed, found.passed) == (9, passed, passed)
        assert found.tuned
        assert found.tuned.exact_match is None, "no metric asked for answers, so none were written"


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
    verdict, writer = run(again)
    was, now = trained.intent.evaluation, writer.intent.evaluation
    assert was
    assert now
    assert was.tuned
    assert now.tuned
    assert now.tuned.loss == pytest.approx(was.tuned.loss, rel=1e-4), "the same adapter on the same rows"
    assert now.base == was.base
    assert "training took" not in verdict
    assert writer.intent.training
    assert writer.intent.training.step == 0
    assert (tmp_path / "drift" / "report.html").exists()


def _failure(bundle: Bundle) -> FailureReason:
    """What the run fails with, once the status says the same."""
    writer = StatusWriter(None, "attempt-1")
    with pytest.raises(TrainerFailure) as caught:
        train(bundle, open_storage(bundle), writer, attempt=1)
    condition = writer.intent.conditions[-1] if writer.intent.conditions else None
    assert condition
    assert (condition.type, condition.status, condition.reason) == ("Trained", "False", caught.value.reason)
    assert FAILURES[caught.value.reason].remedy in condition.message
    return caught.value.reason


def test_sigterm_ends_it_after_the_step_as_preempted(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    prepare(bundle)
    path, termination = tmp_path / "bundle.json", tmp_path / "termination-log"
    path.write_text(bundle.model_dump_json(by_alias=True, exclude_none=True))
    monkeypatch.setenv("TERMINATION_LOG", str(termination))
    monkeypatch.setattr(_Stop, "requested", False)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(module, "training_steps", _sigterm_during(training_steps, step=3))
    try:
        exit_code = main(["train", str(path)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert exit_code == FAILURES[FailureReason.PREEMPTED].exit_code
    assert json.loads(termination.read_text()) == {
        "reason": "Preempted",
        "message": "The pod was told to stop (SIGTERM) after step 3 of 6.",
        "step": 3,
    }


def _sigterm_during(take: Callable[..., Iterator[Step]], step: int) -> Callable[..., Iterator[Step]]:
    def steps(*arguments: Any) -> Iterator[Step]:
        for done in take(*arguments):
            if done.number == step:
                signal.raise_signal(signal.SIGTERM)
            yield done

    return steps
