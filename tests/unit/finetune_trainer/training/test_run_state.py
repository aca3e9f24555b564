"""What a checkpoint stores beside weights and optimizer."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune_trainer.model.parameters.tensor_file import open_tensors
from finetune_trainer.training import run_state as module
from finetune_trainer.training.loop import Step
from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.run_state import (
    STEPS,
    RunState,
    Words,
    other_records,
    records,
    resumed,
    steps_of,
    words_of,
)
from finetune_trainer.training.spent import Machine, Spent
from finetune_trainer.training.validation import ValidationLoss

floats = st.floats(allow_nan=False, allow_infinity=False)
steps = st.builds(
    Step, st.integers(1, 10**7), floats, floats, floats, st.integers(0, 2**40), floats, st.integers(0, 2**40)
)


@given(st.lists(steps, max_size=20))
def test_records_of_steps_are_exact(done: list[Step]) -> None:
    found = steps_of(records(done))
    assert found == done
    assert all(type(a.tokens) is int and type(a.loss) is float for a in found)


def test_a_run_is_stored_and_resumed_exactly(tmp_path: Path) -> None:
    done = [Step(1, 0.1 + 0.2, 1e-3, 1 / 3, 100, 0.7, 5), Step(2, 5e-324, 1e-3, 0.5, 90, 0.6, 6)]
    curve = [ValidationLoss(2, 1 / 7, 0.25)]
    run = RunState(StepLayout(512, True, False), halvings=1, steps=done, curve=curve, held_before=3.0)
    words = words_of(run.after(9.5, Machine(2, "7.20")), 4, "best-00000002-p", {"optimizer/a/step": 2})
    (tmp_path / "state").write_bytes(open_tensors({STEPS: records(done)}).read())
    read = Words.model_validate_json(words.model_dump_json())
    assert read == words
    assert (read.step, read.attempt, read.best, read.numbers) == (2, 4, "best-00000002-p", {"optimizer/a/step": 2})
    assert resumed(read, tmp_path / "state") == RunState(
        StepLayout(512, True, False), 1, done, curve, held_before=12.5, resumed_from=2, spent_before=Spent(25.0, 0.05)
    )


def test_a_state_without_what_was_spent_counts_as_time_on_the_present_machine(tmp_path: Path) -> None:
    words = words_of(RunState(StepLayout(1, True), held_before=3600.0), 1, None, {})
    (tmp_path / "state").write_bytes(open_tensors({STEPS: records([])}).read())
    earlier = words.model_dump(mode="json", exclude={"spent"})
    run = resumed(Words.model_validate(earlier), tmp_path / "state")
    spent = run.spent(3600.0, Machine(4, "0.80"))
    assert (spent.gpu_seconds, spent.cost) == (4 * 7200.0, pytest.approx(6.4))


@pytest.mark.parametrize(
    "written",
    [
        {STEPS: records([Step(1, 0.5, 1e-3, 0.5, 90, 0.6, 6)])[:, :-1]},
        {STEPS: records([])},
        {"steps of old": records([Step(1, 0.5, 1e-3, 0.5, 90, 0.6, 6)])},
    ],
    ids=["a field less", "a step less", "another name"],
)
def test_records_of_another_version_are_told(tmp_path: Path, written: dict[str, Tensor]) -> None:
    done = [Step(1, 0.5, 1e-3, 0.5, 90, 0.6, 6)]
    words = words_of(RunState(StepLayout(512, True), steps=done), 1, None, {})
    path = tmp_path / "state"
    path.write_bytes(open_tensors({STEPS: records(done)}).read())
    assert other_records(words, path) is None
    path.write_bytes(open_tensors(written).read())
    assert other_records(words, path) == "its records of the steps are from another version of the trainer"


def test_other_versions_of_the_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(RunState(StepLayout(1, True)), 1, None, {})
    assert words.other_versions == ""
    monkeypatch.setattr(module, "versions", lambda: words.versions | {"torch": "9.9"})
    assert words.other_versions == f"torch {words.versions['torch']} (now 9.9)"
