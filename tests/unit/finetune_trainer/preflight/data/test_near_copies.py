"""Near-duplicates: they stay on one side of the split or are dropped, and leaked test rows are reported."""

from pathlib import Path

import pytest

from finetune_api.bundle import Bundle
from tests.unit.finetune_trainer.conftest import MakeBundle, near_copies, sum_rows, write_rows
from tests.unit.finetune_trainer.preflight_runs import run, with_dataset


def test_near_copies_never_straddle_the_split(make_bundle: MakeBundle) -> None:
    prepared = run(make_bundle(rows=near_copies(60)))
    clusters = [{example.cluster for example in side} for side in (prepared.train, prepared.test)]
    assert clusters[0].isdisjoint(clusters[1])
    assert len(clusters[0] | clusters[1]) == 60
    assert prepared.preflight.near_duplicates == 60


def test_on_request_only_the_first_of_near_copies_is_kept(make_bundle: MakeBundle) -> None:
    rows = [{**row, "completion": "the same"} for row in near_copies(60)]
    prepared = run(with_dataset(make_bundle(rows=rows), deduplicate={"near": "Drop"}))
    assert {"first?" in example.prompt for example in (*prepared.train, *prepared.test)} == {True}
    assert len(prepared.train) + len(prepared.test) == 60
    assert prepared.preflight.near_duplicates == 60


def advice_of(bundle: Bundle) -> dict[str, str]:
    return {advice.reason: advice.message for advice in run(bundle).preflight.advice or []}


def test_a_planted_test_row_is_found(make_bundle: MakeBundle, tmp_path: Path) -> None:
    rows = near_copies(60)
    # With a full stop after the answer, since an exact copy is dropped anyway.
    planted = {**rows[100], "completion": f"{rows[100]['completion']}."}
    train = write_rows(tmp_path / "train.jsonl", [*rows[0:100:2], planted])
    test = write_rows(tmp_path / "test.jsonl", rows[100::2])
    dataset = {"train": [{"uri": str(train)}], "test": [{"uri": str(test)}]}
    told = advice_of(make_bundle(dataset=dataset))
    assert (
        "1 of 10 test rows (10%) also occur in spec.dataset.train with the same or nearly the same answer"
        in told["TestRowsLeak"]
    )
    assert "test.jsonl line 1 in " in told["TestRowsLeak"]
    assert "train.jsonl line 51)" in told["TestRowsLeak"]
    assert "TestRowsLeak" not in advice_of(make_bundle(dataset=dataset | {"deduplicate": {"near": "Drop"}}))


@pytest.mark.parametrize("deduplicate", [{}, {"near": "Keep"}])
def test_a_test_row_inside_a_longer_row_leaks_with_its_answer(
    make_bundle: MakeBundle, tmp_path: Path, deduplicate: dict[str, str]
) -> None:
    asked = "A farmer has twelve cows and sells five of them on Monday, so how many cows are left for him to milk?"
    longer = {"prompt": f"Solve this for me, please, and explain why. {asked} Thank you!", "completion": "7"}
    unanswered = {"prompt": "Give me an example of a question.", "completion": f"Here is one. {asked}"}
    train = write_rows(tmp_path / "train.jsonl", [*sum_rows(40), longer])
    other = write_rows(tmp_path / "other.jsonl", [*sum_rows(40), unanswered])
    test = write_rows(tmp_path / "test.jsonl", [*sum_rows(50)[40:], {"prompt": asked, "completion": "7"}])
    dataset = {"train": [{"uri": str(train)}], "test": [{"uri": str(test)}], "deduplicate": deduplicate}
    told = advice_of(make_bundle(dataset=dataset))
    assert "1 of 11 test rows (9%)" in told["TestRowsLeak"]
    assert "train.jsonl line 41)" in told["TestRowsLeak"]
    assert "TestRowsLeak" not in advice_of(make_bundle(dataset=dataset | {"train": [{"uri": str(other)}]}))


def test_the_rows_that_leaked_are_known_to_the_attempts(make_bundle: MakeBundle, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [*sum_rows(40), {"prompt": "is it late?", "completion": "Hardly"}])
    asked = [{"prompt": "Is it late?", "completion": answer} for answer in ("a little", "hardly")]
    test = write_rows(tmp_path / "test.jsonl", [*sum_rows(50)[40:], *asked])
    prepared = run(make_bundle(dataset={"train": [{"uri": str(train)}], "test": [{"uri": str(test)}]}))
    assert [row.leaked for row in prepared.test] == [False] * 11 + [True]
    assert prepared.preflight.leaked == 1
