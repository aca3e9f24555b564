"""A job that is killed in any phase goes on with the results of the finished phases, and ends with the same results."""

import json
import re
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.resume.histories import PREEMPTED, Ended, attempt, prepare
from benchmarks.resume.serve import Server
from finetune_api.bundle import Bundle
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer, sum_rows, write_rows

TRAINER = "finetune_trainer"
BASE_ROWS = f"{TRAINER}.evaluation.scoring:write_answers:1"
SECOND_DRAW = f"{TRAINER}.evaluation.scoring:write_answers:2"
BEFORE_TRAINING = f"{TRAINER}.train.tuning:trainable_model:1"
AFTER_TRAINING = f"{TRAINER}.train.tuning:stage_weights:1"
KEEPING_WEIGHTS = f"{TRAINER}.storage.job_storage:JobStorage.send:3"
TUNED_ROWS = BASE_ROWS
"""The first answers of an attempt that has the base model's."""
TUNED_REGRESSION = SECOND_DRAW
MERGE = f"{TRAINER}.train.recipe:merge:1"
BATCH = f"{TRAINER}.evaluation.generation:generate_within_memory:{{}}"
UPLOAD = f"{TRAINER}.storage.job_storage:JobStorage.upload_file:3"
SPECS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"lora": {"r": 4, "dropout": 0.2}}, "output": {"uri": "/later", "merge": True}},
    "full": {"method": {"type": "Full"}},
    "small batches": {
        "training": {"maxSteps": 2, "microBatchTokens": 32, "publish": "Last"},
        "evaluation": {"generation": {"maxNewTokens": 4}},
    },
    "qlora": {"method": {"type": "QLoRA", "lora": {"r": 4, "useDora": True, "bias": "LoraOnly"}}},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tokenizer(folder / "model")
    save_model(folder / "model", attention_bias=True)
    write_rows(folder / "rows.jsonl", sum_rows(60))
    write_rows(folder / "general.jsonl", sum_rows(70)[-8:])
    return folder


def prepared(name: str, inputs: Path, folder: Path) -> Path:
    """A folder with a job whose preflight has ended."""
    spec = {
        "model": {"uri": str(inputs / "model")},
        "dataset": {"train": [{"uri": str(inputs / "rows.jsonl")}], "split": {"validation": 0.2, "test": 0.2}},
        "output": {"uri": "/later"},
        "training": {"epochs": 2, "learningRate": 0.01, "publish": "Best", "evaluateEvery": 2},
        "evaluation": {
            "generation": {"maxNewTokens": 4},
            "regression": [
                {"name": "general", "uri": str(inputs / "general.jsonl"), "metric": "ExactMatch", "maxDrop": 1}
            ],
        },
    }
    return prepare(Bundle.model_validate({"spec": spec | SPECS[name], "allowCPU": True}), folder)


def place(prepared: Path, folder: Path) -> None:
    """Copies the job to `folder`, where it also publishes."""
    shutil.copytree(prepared, folder)
    bundle = json.loads((folder / "bundle.json").read_text())
    bundle["spec"]["output"]["uri"] = str(folder / "out")
    (folder / "bundle.json").write_text(json.dumps(bundle))


def run(server: Server, prepared: Path, folder: Path, *deaths: str, **environment: str) -> list[Ended]:
    """The attempts of a job. Each of `deaths` ends one, and the one after them ends by itself."""
    place(prepared, folder)
    attempts = []
    for number, death in enumerate([*deaths, ""], start=1):
        attempts.append(attempt(server, folder, number, DIES_AT=death, **environment))
        end = PREEMPTED if "DIES_BY" in environment else -signal.SIGKILL
        assert attempts[-1].code == (end if death else 0), attempts[-1].log
    return attempts


def results(folder: Path) -> dict[str, Any]:
    """Everything that was published and does not depend on time."""
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    evaluation = manifest["evaluation"]
    evaluation["verdict"] = re.sub(r"Training took [\d.]+ s", "", evaluation["verdict"])
    del evaluation["observedTime"]
    return {
        "evaluation": evaluation,
        "comparison": manifest["comparison"],
        "loss": manifest["training"]["loss"],
        "curve": manifest["training"]["bestValidationLoss"],
        "samples": (folder / "out" / "samples.jsonl").read_bytes(),
        "weights": {
            str(path.relative_to(folder)): path.read_bytes() for path in (folder / "out").glob("*/*.safetensors")
        },
    }


def stored(ended: Ended) -> int:
    """The last checkpoint that an attempt told in the status."""
    told = re.findall(r'"checkpointStep": (\d+)', ended.log)
    return int(told[-1])


def kept_results(ended: Ended) -> int:
    """The last number of kept results that an attempt told in the status."""
    return int(re.findall(r'"keptResults": (\d+)', ended.log)[-1])


def count(attempts: list[Ended], line: str) -> int:
    """In how many attempts the log has a line that begins so."""
    return sum(any(text.startswith(line) for text in ended.log.splitlines()) for ended in attempts)


@pytest.mark.thorough_for("full", "qlora")
@pytest.mark.parametrize("name", ["lora", "full", "qlora"])
def test_a_job_that_is_killed_in_every_phase_ends_with_the_results_of_the_uninterrupted_one(
    name: str, server: Server, inputs: Path, tmp_path: Path
) -> None:
    job = prepared(name, inputs, tmp_path / "prepared")
    run(server, job, tmp_path / "whole")
    deaths = [
        BASE_ROWS,
        SECOND_DRAW,
        BEFORE_TRAINING,
        AFTER_TRAINING,
        KEEPING_WEIGHTS,
        TUNED_ROWS,
        TUNED_REGRESSION,
        *([MERGE] if name == "lora" else []),
        UPLOAD,
    ]
    attempts = run(server, job, tmp_path / "killed", *deaths)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert not (tmp_path / "killed" / "out" / ".work").exists(), "nothing temporary is left"
    last = attempts[-1].log
    steps = json.loads((tmp_path / "killed" / "out" / "manifest.json").read_text())["training"]["step"]
    assert [stored(ended) for ended in attempts[5:7]] == [steps, steps], "a kept training counts as a checkpoint"
    assert "The results of the base model are those of attempt 3, measured in " in last
    assert re.search(r"The tuned weights are those of attempt 6: \d+ steps in ", last)
    assert "The results of the tuned model are those of attempt 7, measured in " in last
    assert count(attempts, "Answering 12 held-out rows with the base model.") == 2
    assert count(attempts, "Answering 12 held-out rows with the tuned model.") == 2


def test_a_job_that_is_killed_again_and_again_while_it_answers_ends_with_the_results_of_the_uninterrupted_one(
    server: Server, inputs: Path, tmp_path: Path
) -> None:
    job = prepared("small batches", inputs, tmp_path / "prepared")
    run(server, job, tmp_path / "whole")
    deaths = [BATCH.format(3)] * 4
    attempts = run(server, job, tmp_path / "killed", *deaths, KEEPS_EACH_BATCH="yes")
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    told = [kept_results(ended) for ended in attempts]
    assert all(later > earlier for earlier, later in pairwise(told)), "each attempt made progress"
    assert told[1] == told[0] + 2, "the third batch of each attempt was not written"
    assert count(attempts, "The first ") >= 2


@pytest.mark.thorough
def test_a_job_that_gets_sigterm_again_and_again_while_it_answers_loses_only_the_batch_that_is_being_written(
    server: Server, inputs: Path, tmp_path: Path
) -> None:
    job = prepared("small batches", inputs, tmp_path / "prepared")
    run(server, job, tmp_path / "whole")
    attempts = run(server, job, tmp_path / "stopped", *[BATCH.format(3)] * 3, DIES_BY="SIGTERM")
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    messages = [ended.message["keptResults"] for ended in attempts[:3]]
    assert messages == [kept_results(ended) for ended in attempts[:3]], "also in the termination message"
    assert all(later > earlier for earlier, later in pairwise([0, *messages])), "each attempt made progress"
    assert count(attempts, "The first ") >= 2


def test_a_kept_result_that_is_damaged_is_not_used_and_the_log_says_why(
    server: Server, inputs: Path, tmp_path: Path
) -> None:
    job = prepared("lora", inputs, tmp_path / "prepared")
    run(server, job, tmp_path / "whole")
    folder = tmp_path / "damaged"
    shutil.copytree(job, folder)
    bundle = json.loads((folder / "bundle.json").read_text())
    bundle["spec"]["output"]["uri"] = str(folder / "out")
    (folder / "bundle.json").write_text(json.dumps(bundle))
    assert attempt(server, folder, 1, DIES_AT=MERGE).code == -signal.SIGKILL
    kept = next((folder / "out" / ".work").glob("*/kept"))
    whole = (kept / "baselines-pod-1" / "measurements.json").read_bytes()
    (kept / "baselines-pod-1" / "measurements.json").write_bytes(whole[:-10])
    weights = kept / "trained-pod-1" / "weights" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    foreign = json.loads((kept / "tuned.rows-pod-1" / "manifest.json").read_text())
    foreign["about"]["the digest of the data"] = "another"
    (kept / "tuned.rows-pod-1" / "manifest.json").write_text(json.dumps(foreign))
    (kept / "base.lora.draw2-pod-1" / "manifest.json").unlink()
    ended = attempt(server, folder, 2)
    assert ended.code == 0, ended.log
    for why in (
        "baselines-pod-1 is not used: its file measurements.json has ",
        "trained-pod-1 is not used: the content of its file weights/adapter_model.safetensors is not what was written.",
        'tuned.rows-pod-1 is not used: it was written for the digest of the data "another", and this run has ',
        "base.lora.draw2-pod-1 is not used: it has no manifest.json, because its writer was stopped",
    ):
        assert why in ended.log
    assert "The results of the base model are those of attempt 1" in ended.log
    assert "draw 2 of 3 are those" not in ended.log
    assert "draw 3 of 3 are those of attempt 1" in ended.log
    assert results(folder) == results(tmp_path / "whole")


def test_another_version_of_the_trainer_takes_over_tuned_weights_like_a_checkpoint_and_measures_them_itself(
    server: Server, inputs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    place(prepared("small batches", inputs, tmp_path / "prepared"), folder)
    assert attempt(server, folder, 1, DIES_AT=UPLOAD).code == -signal.SIGKILL
    manifests = [*folder.glob("out/.work/*/kept/*/manifest.json")]
    for path in manifests:
        manifest = json.loads(path.read_text())
        if "the version of the trainer" in manifest["about"]:
            manifest["about"]["the version of the trainer"] = "an earlier one"
        path.write_text(json.dumps(manifest))
    second = attempt(server, folder, 2)
    assert second.code == 0, second.log
    assert "The tuned weights are those of attempt 1: 2 steps" in second.log
    assert "Training: step" not in second.log
    assert "is not used: it was written for the version of the trainer" in second.log
    assert "The results of the base model are those of" not in second.log
