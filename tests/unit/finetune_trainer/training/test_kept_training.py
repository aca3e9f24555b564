"""What a later attempt takes over of a finished training."""

import dataclasses
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from finetune_trainer.checkpoints.kept import TRAINED, KeptResults
from finetune_trainer.storage.job_storage import open_storage
from finetune_trainer.training.kept_training import RECORDS, keep_training, kept_training
from finetune_trainer.training.loop import Step
from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.run_state import RunState
from finetune_trainer.training.spent import Machine, Spent
from tests.unit.finetune_trainer.storage.test_job_storage import bundle


@pytest.fixture
def kept(tmp_path: Path) -> KeptResults:
    storage = open_storage(bundle(str(tmp_path)))
    return KeptResults(storage, str(tmp_path / "kept"), 1, {"data": "d"}, tmp_path / "scratch")


def test_records_and_weights_of_a_training_are_those_that_were_kept(kept: KeptResults, tmp_path: Path) -> None:
    run = RunState(StepLayout(1, False), steps=[Step(1, 1.0, 0.1, 0.1, 1, 0.1)])
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(b"w")
    keep_training(kept, run.after(5.0, Machine(2, "7.20")), tmp_path / "adapter", is_adapter=True, then=lambda: None)
    found = kept_training(kept)
    assert found is not None
    assert found.run == dataclasses.replace(run, held_before=5.0, resumed_from=1, spent_before=Spent(10.0, 0.02))
    assert (found.weights / "weights").read_bytes() == b"w"


@pytest.mark.parametrize("content", [{"plan": {}}, [], {"plan": {"micro_batch_tokens": 1}, "steps": [{"loss": "?"}]}])
def test_records_of_another_version_that_cannot_be_read_are_not_used_and_the_log_says_so(
    kept: KeptResults, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.keep(TRAINED, {RECORDS: TypeAdapter(object).dump_json(content), "weights/w": b"w"})
    assert kept_training(kept) is None
    assert (
        f"{TRAINED}-local is not used: its {RECORDS} is from another version of the trainer." in capsys.readouterr().out
    )


def test_beside_records_that_cannot_be_read_those_of_another_pod_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, run = open_storage(bundle(str(tmp_path))), RunState(StepLayout(1, False))
    for pod, records in (("a", b"{}"), ("b", TypeAdapter(RunState).dump_json(run))):
        monkeypatch.setenv("POD_UID", pod)
        results = KeptResults(storage, str(tmp_path / "kept"), 1, {"data": "d"}, tmp_path / pod)
        assert results.keep(TRAINED, {RECORDS: records, "weights/w": b"w"})
    found = kept_training(KeptResults(storage, str(tmp_path / "kept"), 2, {"data": "d"}, tmp_path / "later"))
    assert found is not None
    assert found.run == dataclasses.replace(run, resumed_from=0)
