"""Training, validation and test rows are drawn or named, and no row is on two sides."""

from pathlib import Path

import pytest

from finetune_api.reasons import FailureReason
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model, save_tokenizer, sum_rows, write_rows
from tests.unit.finetune_trainer.preflight_runs import failure, run, with_dataset, written
from tests.unit.finetune_trainer.tokens.test_render import FORGETFUL

ROLES = ("user", "assistant")


def test_named_test_rows_are_kept_and_their_copies_leave_train(make_bundle: MakeBundle, tmp_path: Path) -> None:
    held = write_rows(tmp_path / "test.jsonl", sum_rows(5))
    train = write_rows(tmp_path / "train.jsonl", sum_rows(20))
    prepared = run(make_bundle(dataset={"train": [{"uri": str(train)}], "test": [{"uri": str(held)}]}))
    assert [example.prompt for example in prepared.test] == [row["prompt"] for row in sum_rows(5)]
    assert {example.prompt for example in prepared.train} == {row["prompt"] for row in sum_rows(20)[5:]}
    assert prepared.preflight.duplicates == 5


def test_a_train_set_that_only_repeats_the_test_set_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    train, test = ([{"uri": str(write_rows(tmp_path / f"{name}.jsonl", sum_rows(5)))}] for name in ("train", "test"))
    found = failure(make_bundle(dataset={"train": train, "test": test}))
    assert found.reason is FailureReason.DATASET_INVALID
    assert "Every row of spec.dataset.train is also in spec.dataset.test: " in found.message


def test_named_validation_rows_are_kept_and_their_copies_leave_train(make_bundle: MakeBundle, tmp_path: Path) -> None:
    files = {
        side: [{"uri": str(write_rows(tmp_path / f"{side}.jsonl", rows))}]
        for side, rows in (("test", sum_rows(5)), ("validation", sum_rows(12)), ("train", sum_rows(30)))
    }
    prepared = run(make_bundle(dataset=files))
    assert [example.prompt for example in prepared.test] == [row["prompt"] for row in sum_rows(5)]
    assert [example.prompt for example in prepared.validation] == [row["prompt"] for row in sum_rows(12)[5:]]
    assert [example.prompt for example in prepared.train] == [row["prompt"] for row in sum_rows(30)[12:]]
    assert prepared.preflight.duplicates == 5 + 12


def test_rows_to_validate_on_are_drawn_from_train(make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_bundle().spec.dataset.model_dump(by_alias=True, exclude_none=True)
    prepared = run(make_bundle(rows=sum_rows(100), dataset=dataset | {"split": {"validation": 0.1}}))
    sides = [prepared.train, prepared.validation, prepared.test]
    assert [len(side) for side in sides] == [70, 10, 20]
    assert len({example.prompt for side in sides for example in side}) == 100
    splits = written(capsys).preflight.splits  # type: ignore[union-attr]
    assert (splits.train, splits.validation, splits.test) == (70, 10, 20)  # type: ignore[union-attr]


def test_rows_that_ask_the_same_share_a_cluster_and_a_side(make_bundle: MakeBundle) -> None:
    rows = [{"prompt": f"What is {i % 20}?", "completion": f"It is {i}."} for i in range(60)]
    prepared = run(make_bundle(rows=rows))
    clusters: dict[int, set[str]] = {}
    for example in (*prepared.train, *prepared.test):
        clusters.setdefault(example.cluster, set()).add(example.prompt)
    assert [len(prompts) for prompts in clusters.values()] == [1] * 20
    assert {e.cluster for e in prepared.train}.isdisjoint(e.cluster for e in prepared.test)


@pytest.mark.parametrize("near", ["Group", "Drop", "Keep"])
def test_one_prompt_over_many_system_prompts_can_be_split(make_bundle: MakeBundle, near: str) -> None:
    asked = {"prompt": "Which department answers this message?"}
    rows = [asked | {"system": f"{row['prompt']} Ask {i}", "completion": "Sales"} for i, row in enumerate(sum_rows(60))]
    prepared = run(with_dataset(make_bundle(rows=rows), deduplicate={"near": near}))
    assert (len(prepared.train), len(prepared.test)) == (48, 12)
    assert len({example.cluster for example in (*prepared.train, *prepared.test)}) == 60


def test_answers_of_one_conversation_stay_on_one_side_where_each_is_a_row(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path / "model", FORGETFUL)
    save_model(tmp_path / "model")
    rows = [
        {"messages": [{"role": role, "content": f"{role} {i} {turn}"} for turn in range(3) for role in ROLES]}
        for i in range(30)
    ]
    bundle = make_bundle(rows=rows, model={"uri": str(tmp_path / "model")})
    for near in ("Group", "Drop"):
        prepared = run(with_dataset(bundle, deduplicate={"near": near}))
        asked = [{example.messages[0].content for example in side} for side in (prepared.train, prepared.test)]
        assert len(prepared.train) + len(prepared.test) == 3 * len(asked[0] | asked[1]) == 3 * 30
        assert asked[0].isdisjoint(asked[1])
        advice = {advice.reason: advice.message for advice in prepared.preflight.advice or []}
        assert "30 conversations" in advice["ConversationsTakenApart"]
