"""Rows of several sources: each row knows its source, and sources have names and weights."""

from pathlib import Path

from finetune_api.reasons import FailureReason
from tests.unit.finetune_trainer.conftest import MakeBundle, near_copies, sum_rows, write_rows
from tests.unit.finetune_trainer.preflight_runs import failure, run


def test_a_row_carries_the_index_of_its_source(make_bundle: MakeBundle, tmp_path: Path) -> None:
    rows = sum_rows(60)
    train = [{"uri": str(write_rows(tmp_path / f"{n}.jsonl", rows[n::2]))} for n in range(2)]
    prepared = run(make_bundle(dataset={"train": train}))
    assert {(e.mixture, e.place.rsplit("/")[-1].split(":")[0]) for e in prepared.train} == {
        (0, "0.jsonl"),
        (1, "1.jsonl"),
    }


def test_sources_are_counted_by_name(make_bundle: MakeBundle, tmp_path: Path) -> None:
    rows = sum_rows(60)
    files = [str(write_rows(tmp_path / f"{n}.jsonl", rows[20 * n : 60 if n else 20])) for n in range(2)]
    prepared = run(make_bundle(dataset={"train": [{"uri": files[0], "name": "few"}, {"uri": files[1]}]}))
    sources = prepared.preflight.sources or []
    assert [(source.side, source.name, source.rows) for source in sources] == [
        ("train", "few", 20),
        ("train", "train-2", 40),
    ]
    tokens = sum(len(example.input_ids) for example in (*prepared.train, *prepared.test))
    assert sum(source.tokens for source in sources) == tokens


def test_every_row_knows_its_source_and_repeated_sources_are_reported(make_bundle: MakeBundle, tmp_path: Path) -> None:
    large = write_rows(tmp_path / "large.jsonl", sum_rows(80))
    small = write_rows(tmp_path / "small.jsonl", near_copies(5))
    sources = [{"uri": str(large), "weight": 1}, {"uri": str(small), "weight": 3}]
    prepared = run(make_bundle(dataset={"train": sources}, training={"epochs": 2}))
    assert {example.mixture for example in prepared.train} == {0, 1}
    told = {advice.reason: advice.message for advice in prepared.preflight.advice or []}
    assert "the run uses each row of spec.dataset.train[1] " in told["SourceRepeated"]


def test_a_weight_for_a_source_without_usable_rows_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    once = write_rows(tmp_path / "once.jsonl", sum_rows(40))
    again = write_rows(tmp_path / "again.jsonl", sum_rows(40))
    sources = [{"uri": str(once), "weight": 1}, {"uri": str(again), "weight": 1}]
    found = failure(make_bundle(dataset={"train": sources}))
    assert found.reason is FailureReason.DATASET_INVALID
    assert "spec.dataset.train[1] has a weight but no usable training row" in found.message
