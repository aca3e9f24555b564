"""What a job can ask of its training and evaluation, asked of the process that a pod runs."""

import json
from typing import Any

import pytest
from safetensors.torch import load_file

from finetune_api.reasons import FAILURES, FailureReason
from finetune_api.spec.method import MethodType
from finetune_api.status.evaluation import Evaluation, Metrics
from finetune_api.status.job import Artifacts, FineTuneJobStatus, Training
from tests.integration.finetune_trainer.as_the_pod_runs.cases import HUB_MODEL, HUB_REVISION, HUB_ROWS, TRAININGS
from tests.integration.finetune_trainer.as_the_pod_runs.conftest import RunCase
from tests.integration.finetune_trainer.as_the_pod_runs.pod import DATA, Ended, Pods
from tests.integration.hub_server.server import HubServer

WIDE = {"loss", "perplexity", "truncated"}
OVERLAPS = {"token_f1", "exact_match", "rouge1", "rouge2", "rouge_l", "bleu"}


def result(ended: Ended, code: int = 0) -> tuple[Training, Evaluation, Artifacts]:
    """What the status says at the end of an attempt."""
    assert ended.code == code, ended.log
    assert "Traceback" not in ended.log
    status: FineTuneJobStatus = ended.status
    assert status.training
    assert status.evaluation
    assert status.artifacts
    return status.training, status.evaluation, status.artifacts


def taken(metrics: Metrics | None) -> set[str]:
    """Names of the metrics that were measured."""
    return set(metrics.model_dump(exclude_none=True)) if metrics else set()


def published(pods: Pods, name: str) -> dict[str, Any]:
    """The manifest of a job's results, each of whose files is there."""
    folder = pods.data / "out" / name
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {file["path"] for file in manifest["files"]} | {"manifest.json"}
    return manifest


def adapter(pods: Pods, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and weights of a published adapter."""
    folder = pods.data / "out" / name / "adapter"
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


def resolved_method(checked: RunCase, name: str) -> MethodType:
    resolved = checked(name).status.resolved
    assert resolved
    return resolved.method


@pytest.mark.thorough_for("none", "continued", "full", "nf4", "nodes")
@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_publishes_its_results_and_ends_with_the_right_exit_code(name: str, trained: RunCase, pods: Pods) -> None:
    ended = trained(name)
    missed = ended.message.reason is FailureReason.EVALUATION_GATE_FAILED
    result(ended, FAILURES[FailureReason.EVALUATION_GATE_FAILED].exit_code if missed else 0)
    assert missed == (name == "qlora")
    assert published(pods, name)["evaluation"].get("passed") is {"lora": True, "qlora": False}.get(name)


def test_lora_uses_every_setting_of_the_adapter(trained: RunCase, pods: Pods) -> None:
    trained("lora")
    config, weights = adapter(pods, "lora")
    kept = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")
    assert [config[key] for key in kept] == [4, 8, 0.1, True, True, "lora_only"]
    assert set(config["target_modules"]) == {"q_proj", "down_proj"}
    endings = {name.split(".self_attn.")[-1] for name in weights if "layers.0.self_attn" in name}
    assert endings == {
        "q_proj.lora_A.weight",
        "q_proj.lora_B.weight",
        "q_proj.lora_magnitude_vector",
        "q_proj.base_layer.bias",
    }


def test_early_stopping_and_the_settings_for_memory_and_learning_rate_are_used(trained: RunCase) -> None:
    training, _, _ = result(trained("lora"))
    assert (training.step, training.best_step, training.total_steps) == (4, 4, 44)
    assert (training.micro_batch_tokens, training.gradient_checkpointing) == (64, True)
    assert training.learning_rate == pytest.approx(0.01 * 4 / 6), "Linear, after five steps of warming up"


def test_checkpoints_are_written_and_deleted_with_the_work_folder(trained: RunCase, pods: Pods) -> None:
    ended = trained("lora")
    training = ended.status.training
    assert training
    assert training.resumed_from_step is None
    assert training.checkpoint_step
    assert training.checkpoint_step >= training.step - 2, "of every step; the last step is followed by the results"
    assert "Checkpoints: " in ended.log
    assert not (pods.data / "out" / "lora" / ".work").exists()


def test_gates_regression_sets_and_merged_weights_are_measured(trained: RunCase, pods: Pods) -> None:
    _, evaluation, artifacts = result(trained("lora"))
    assert taken(evaluation.tuned) == WIDE | OVERLAPS
    assert taken(evaluation.few_shot) == {"truncated"} | OVERLAPS
    bounds = [(gate.metric.value, gate.bound, gate.passed) for gate in evaluation.gates or []]
    assert bounds == [
        ("Loss", "Min", True),
        ("Loss", "Max", True),
        ("Loss", "MinGainOverBase", True),
        ("TokenF1", "MinGainOverBase", True),
        ("TokenF1", "MinGainOverFewShot", True),
    ]
    assert [(each.name, each.rows, each.passed) for each in evaluation.regression or []] == [("general", 6, True)]
    assert evaluation.merged
    assert not evaluation.merged.changed
    assert artifacts.merged == "/data/out/lora/merged"
    assert not [name for name in load_file(pods.data / "out/lora/merged/model.safetensors") if "lora" in name]


@pytest.mark.thorough
def test_two_nodes_train_together_and_read_their_own_files(trained: RunCase, pods: Pods) -> None:
    ended = trained("nodes")
    training, evaluation, _ = result(ended)
    assert [peer.reason for peer in ended.peers] == ["Succeeded"]
    assert training.step == 4
    assert evaluation.merged, "each node merges for its own ranks"
    assert ended.log.count("The base model was downloaded in") == 1, "rank 0 alone prints"
    assert "This is node 1 of 2." in ended.log
    assert "adapter/adapter_model.safetensors" in {file["path"] for file in published(pods, "nodes")["files"]}


def test_qlora_misses_its_gate_and_keeps_its_results(trained: RunCase, checked: RunCase, pods: Pods) -> None:
    _, evaluation, _ = result(trained("qlora"), FAILURES[FailureReason.EVALUATION_GATE_FAILED].exit_code)
    assert resolved_method(checked, "qlora") is MethodType.QLORA
    assert taken(evaluation.tuned) == WIDE | {"field_match", "valid_json"}
    assert evaluation.few_shot is None
    assert evaluation.quantized
    assert evaluation.quantized.loss_change, "in 4 bits it is another model"
    config, weights = adapter(pods, "qlora")
    assert config["modules_to_save"] == ["lm_head"]
    assert any(name.endswith("lm_head.weight") for name in weights)
    assert "Do not use it" in (pods.data / "out/qlora/adapter/README.md").read_text()


def test_source_weights_and_loss_on_are_used(trained: RunCase, checked: RunCase) -> None:
    training, evaluation, _ = result(trained("qlora"), FAILURES[FailureReason.EVALUATION_GATE_FAILED].exit_code)
    preflight = checked("qlora").status.preflight
    assert preflight
    assert preflight.tokens
    assert preflight.sources
    # Of a row of format PromptCompletion all tokens but the first can be learned.
    assert preflight.supervised_tokens == preflight.tokens - 96
    assert training.learning_rate == 1e-3, "Constant"
    longer = preflight.sources[1]
    learned = round(longer.tokens / longer.rows) * 3 * 8
    assert f"on {learned:,} tokens" in (evaluation.verdict or ""), "the rows of the heavier source alone"


@pytest.mark.thorough
def test_quantizing_to_nf4_changes_the_loss_of_the_base_model(trained: RunCase) -> None:
    _, evaluation, _ = result(trained("nf4"))
    assert evaluation.quantized
    assert evaluation.quantized.loss_change


@pytest.mark.thorough
def test_full_publishes_every_weight_changed(trained: RunCase, checked: RunCase, pods: Pods) -> None:
    training, evaluation, artifacts = result(trained("full"))
    assert resolved_method(checked, "full") is MethodType.FULL
    assert taken(evaluation.tuned) == {"loss", "perplexity"}
    assert (training.step, artifacts.adapter, artifacts.model) == (3, None, "/data/out/full/model")
    before, after = (load_file(pods.data / folder / "model.safetensors") for folder in ("base", "out/full/model"))
    assert set(after) == set(before)
    assert [name for name in before if (before[name] == after[name]).all()] == []


@pytest.mark.thorough
def test_training_continues_from_an_adapter(trained: RunCase, pods: Pods) -> None:
    _, evaluation, _ = result(trained("continued"))
    assert taken(evaluation.tuned) == WIDE | {"exact_match", "macro_f1", "macro_precision", "macro_recall"}
    (_, before), (config, after) = adapter(pods, "lora"), adapter(pods, "continued")
    assert set(config["target_modules"]) == {"q_proj", "down_proj"}
    assert set(before) == set(after)
    assert any((before[name] != after[name]).any() for name in before)


def test_training_resumes_from_the_checkpoint_of_a_stopped_job(trained: RunCase, pods: Pods) -> None:
    training, _, _ = result(trained("resumed"))
    assert training.resumed_from_step
    assert 1 <= training.resumed_from_step < training.step == training.total_steps
    assert "of job stopped." in trained("resumed").log
    assert list((pods.data / "out/stopped/.work/local/checkpoints").glob("step-*")), "they are the stopped job's"


@pytest.mark.thorough
def test_method_none_evaluates_an_adapter_unchanged(trained: RunCase, pods: Pods) -> None:
    training, evaluation, _ = result(trained("none"))
    assert (training.step, training.total_steps) == (0, 0)
    assert evaluation.base
    assert evaluation.tuned
    assert evaluation.base.loss != evaluation.tuned.loss
    (_, before), (_, after) = adapter(pods, "lora"), adapter(pods, "none")
    assert all((before[name] == after[name]).all() for name in before)


def test_method_auto_reports_its_choice_and_the_reason(trained: RunCase, checked: RunCase) -> None:
    _, evaluation, _ = result(trained("auto"))
    resolved = checked("auto").status.resolved
    assert resolved
    assert resolved.method is MethodType.LORA
    assert (resolved.method_reason or "").startswith("Auto chose LoRA")
    assert taken(evaluation.tuned) == WIDE | OVERLAPS


def test_every_part_of_a_job_reads_the_commit_that_the_preflight_found(pods: Pods, hub: HubServer) -> None:
    spec = TRAININGS["hub"] | {"output": {"uri": f"{DATA}/out/pinned"}}
    model, rows = hub.repositories[HUB_MODEL], hub.repositories[f"datasets/{HUB_ROWS}"]
    pinned, weights = model.refs[HUB_REVISION], model.commits[model.refs[HUB_REVISION]]["model.safetensors"]
    before = len(hub.asked)
    checked = pods.preflight(spec)
    assert checked.code == 0, checked.log
    read = [asked.range for asked in hub.asked[before:] if asked.path == f"/objects/{weights.sha256}"]
    assert sum(length_of(range) for range in read) < len(weights.data) / 2, "the header, and not the weights"
    resolved = checked.status.resolved
    assert resolved
    assert {revision.uri: revision.commit for revision in resolved.revisions or []} == {
        f"hf://{HUB_MODEL}": pinned,
        f"hf://datasets/{HUB_ROWS}": rows.refs["main"],
    }
    hub.commit(HUB_MODEL, {"config.json": b"{}"}, ref=HUB_REVISION)
    before = len(hub.asked)
    try:
        training, _, _ = result(pods.train(spec))
    finally:
        model.refs[HUB_REVISION] = pinned
    asked = {asked.path for asked in hub.asked[before:] if asked.server == "hub"}
    assert asked
    assert not [path for path in asked if HUB_MODEL not in path or pinned not in path], "no library asks for more"
    assert training.model_seconds is not None
    assert published(pods, "pinned")["baseModel"]["commit"] == pinned
    for name in ("report.html", "adapter/README.md"):
        assert pinned in (pods.data / "out/pinned" / name).read_text()


def length_of(range: str | None) -> int:
    """The number of bytes of a Range header."""
    first, _, last = (range or "").removeprefix("bytes=").partition("-")
    return int(last) + 1 - int(first)


def test_a_pod_without_a_hub_in_its_job_asks_none(trained: RunCase, hub: HubServer) -> None:
    before = len(hub.asked)
    result(trained("auto"))
    assert len(hub.asked) == before
