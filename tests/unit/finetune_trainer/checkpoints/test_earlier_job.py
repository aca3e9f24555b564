"""Preflight refuses a job if no checkpoint of the job in spec.resumeFrom fits it."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.checkpoints.identity import facts
from finetune_trainer.checkpoints.kept import KEPT, TRAINED, KeptResults
from finetune_trainer.checkpoints.store import CHECKPOINTS, CheckpointStore
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.storage.job_storage import join, open_storage
from tests.unit.finetune_trainer.conftest import MakeBundle, sum_rows, write_rows
from tests.unit.finetune_trainer.preflight_runs import failure, run

LATER = "later"


@pytest.fixture
def first(make_bundle: MakeBundle) -> Bundle:
    """A job with checkpoints of the steps 3 and 6."""
    return with_checkpoints(make_bundle())


def with_checkpoints(bundle: Bundle) -> Bundle:
    prepared, storage = run(bundle), open_storage(bundle)
    store = CheckpointStore(storage, checkpoints(bundle), "p1", facts(bundle, prepared))
    store.begin()
    for step in (3, 6):
        store.write(step, lambda: io.BytesIO(b"state"), b"words", None, lambda size: None)
    return bundle


def checkpoints(bundle: Bundle) -> str:
    return join(work_prefix(bundle), CHECKPOINTS)


def resuming(first: Bundle, **parts: Any) -> Bundle:
    """A job that resumes from `first`, with other parts of the spec."""
    said = first.model_dump(mode="json", by_alias=True, exclude_none=True)
    output = said["spec"]["output"]["uri"]
    said["resume"] = {"uid": "local", "output": output}
    said["spec"] |= {"resumeFrom": {"name": "tickets"}, "output": {"uri": f"{output}-{LATER}"}}
    for name, part in parts.items():
        said["spec"][name] = said["spec"].get(name, {}) | part
    return Bundle.model_validate(said)


def test_a_job_with_the_same_steps_is_accepted(first: Bundle) -> None:
    run(resuming(first))


@pytest.mark.parametrize(
    "parts",
    [
        {"training": {"microBatchTokens": 64, "gradientCheckpointing": "Enabled", "checkpoint": {"every": 3}}},
        {"evaluation": {"maxRows": 3}},
        {"compute": {"memory": "12Gi"}},
        {"training": {"seed": 0}},
        {"method": {"type": "LoRA"}},
        {"training": {"learningRate": 1e-3, "publish": "Last"}},
    ],
)
def test_fields_that_change_no_step_may_differ(first: Bundle, parts: dict[str, Any]) -> None:
    run(resuming(first, **parts))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"training": {"globalBatchSize": 4}}, "spec.training.globalBatchSize 8, and this run has 4"),
        ({"training": {"epochs": 7}}, "spec.training.epochs 1, and this run has 7"),
        ({"training": {"seed": 5}}, "spec.training.seed 0, and this run has 5"),
        ({"training": {"lossOn": "All"}}, 'spec.training.lossOn "Completion", and this run has "All"'),
        ({"method": {"lora": {"r": 2}}}, "spec.method.lora.r 16, and this run has 2"),
        ({"dataset": {"split": {"seed": 9}}}, "The rows of spec.dataset or their tokens are not the same."),
    ],
)
def test_a_field_that_changes_the_steps_is_named_and_the_job_refused(
    first: Bundle, parts: dict[str, Any], said: str
) -> None:
    found = failure(resuming(first, **parts))

    assert found.reason is FailureReason.SPEC_INVALID
    assert found.message.startswith("spec.resumeFrom.name: no checkpoint of FineTuneJob tickets fits. ")
    assert "step-00000006-1.1-p1 is not used: it was written for " in found.message
    assert said in found.message
    assert "Set spec.model, spec.dataset, spec.method and spec.training as in that job." in found.message


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        ({"method": {"type": "QLoRA"}}, "Set spec.method.type to LoRA."),
        ({"training": {"learningRate": 0.5}}, "Set spec.training.learningRate to 0.001."),
        (
            {"training": {"warmupRatio": 0.9}},
            "Set spec.training.warmupRatio so that status.resolved.warmupSteps is 0, as in that job.",
        ),
        ({"training": {"maxSteps": 2}}, "Set spec.training.maxSteps to 6."),
        ({"training": {"maxSteps": 2, "warmupRatio": 0.9}}, "Set spec.training.maxSteps to 6."),
        ({"dataset": {"split": {"validation": 0.2}}}, "Set spec.model, spec.dataset, "),
    ],
)
def test_the_remedy_names_the_field_whose_resolved_value_differs(
    first: Bundle, parts: dict[str, Any], remedy: str
) -> None:
    found = failure(resuming(first, **parts))

    assert found.remedy is not None
    assert found.remedy.startswith(remedy)
    assert found.remedy.endswith(" Or remove spec.resumeFrom, and the job starts with the first step.")


def test_a_job_that_follows_the_remedy_is_accepted(make_bundle: MakeBundle) -> None:
    first = with_checkpoints(make_bundle(method={"type": "QLoRA"}))

    remedy = failure(resuming(first, method={"type": "Auto"})).remedy

    assert (remedy or "").startswith("Set spec.method.type to QLoRA. Or remove spec.resumeFrom")
    run(resuming(first, method={"type": "QLoRA"}))


def test_a_difference_is_told_before_a_damage(first: Bundle) -> None:
    (Path(checkpoints(first)) / "step-00000006-1.1-p1" / "state.safetensors").write_bytes(b"")
    assert (
        "step-00000003-1.1-p1 is not used: it was written for "
        in failure(resuming(first, training={"seed": 5})).message
    )


def test_other_rows_are_refused(first: Bundle, tmp_path: Path) -> None:
    write_rows(tmp_path / "other.jsonl", [{"prompt": f"{i}?", "completion": f"{i}!"} for i in range(40)])

    found = failure(resuming(first, dataset={"train": [{"uri": str(tmp_path / "other.jsonl")}]}))

    assert found.reason is FailureReason.SPEC_INVALID
    assert "it was written for the digest of the data" in found.message


def test_the_same_rows_in_weighted_sources_of_other_sizes_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    def with_border(border: int) -> Bundle:
        parts = sum_rows(60)[:border], sum_rows(60)[border:]
        files = [write_rows(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate(parts)]
        return make_bundle(dataset={"train": [{"uri": str(file), "weight": 1} for file in files]})

    first = with_checkpoints(with_border(40))
    run(resuming(first))
    with_border(20)

    assert "it was written for the number of rows of each source" in failure(resuming(first)).message


def test_a_new_model_card_of_the_base_model_is_no_obstacle(make_bundle: MakeBundle, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(make_bundle().spec.model.uri, model)
    (model / "README.md").write_text("---\nlicense: mit\n---")
    first = with_checkpoints(make_bundle(model={"uri": str(model)}))
    (model / "README.md").write_text("---\nlicense: mit\n---\nMore.")

    run(resuming(first))


def test_a_damaged_newest_checkpoint_is_no_obstacle_while_the_one_before_it_is_whole(first: Bundle) -> None:
    folder = Path(checkpoints(first))
    (folder / "step-00000006-1.1-p1" / "manifest.json").unlink()
    run(resuming(first))

    (folder / "step-00000003-1.1-p1" / "state.safetensors").write_bytes(b"")
    assert "step-00000006-1.1-p1 is not used: it has no manifest.json" in failure(resuming(first)).message


def test_a_job_without_checkpoints_cannot_be_resumed_from(first: Bundle) -> None:
    storage = open_storage(first)
    storage.delete_prefix(checkpoints(first))

    found = failure(resuming(first))

    assert found.reason is FailureReason.SPEC_INVALID
    assert found.message.startswith(
        f"spec.resumeFrom.name: FineTuneJob tickets has no checkpoints below {first.spec.output.uri}. "
        "It stored none, or they were deleted. If that job has a spec.resumeFrom itself, name the job that it names. "
        "Or remove spec.resumeFrom"
    )


def test_the_weights_of_a_training_that_had_ended_suffice(first: Bundle, tmp_path: Path) -> None:
    prepared, storage = run(first), open_storage(first)
    results = KeptResults(storage, join(work_prefix(first), KEPT), 1, facts(first, prepared), tmp_path)
    assert results.keep(TRAINED, {"weights": b"some"})
    storage.delete_prefix(checkpoints(first))

    run(resuming(first))
    assert "has no checkpoints" in failure(resuming(first, training={"globalBatchSize": 4})).message
    Path(work_prefix(first), KEPT, f"{TRAINED}-local", "weights").write_bytes(b"")
    assert "has no checkpoints" in failure(resuming(first)).message


def test_a_job_that_the_operator_did_not_find_is_never_replaced_by_a_training_from_the_first_step(
    first: Bundle,
) -> None:
    found = failure(resuming(first).model_copy(update={"resume": None}))

    assert found.reason is FailureReason.SPEC_INVALID
    assert "FineTuneJob tickets was deleted, so the place of its checkpoints is not known" in found.message


def test_another_base_model_is_refused_and_its_field_named(first: Bundle) -> None:
    model = Path(first.spec.model.uri)
    other = model.with_name("other")
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))

    found = failure(resuming(first, model={"uri": str(other)}))

    assert found.reason is FailureReason.SPEC_INVALID
    assert "The files of spec.model.uri are not the same." in found.message
