"""Rows longer than training.maxSequenceLength are dropped and counted, fail the job, or are split."""

from pathlib import Path

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from tests.unit.finetune_trainer.conftest import MakeBundle, sum_rows, write_rows
from tests.unit.finetune_trainer.preflight_runs import failure, run


def test_rows_over_the_length_are_dropped_and_counted(make_bundle: MakeBundle) -> None:
    long = {"prompt": "long", "completion": "x" * 300}
    prepared = run(make_bundle(rows=[*sum_rows(60), long], training={"maxSequenceLength": 100}))
    assert prepared.preflight.overlength == 1
    assert prepared.resolved.max_sequence_length == 100
    assert all(len(example.input_ids) <= 100 for example in (*prepared.train, *prepared.test))


def test_a_too_long_row_fails_the_job_with_overlength_fail(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(rows=[*sum_rows(60), {"prompt": "long", "completion": "x" * 300}])
    dataset = bundle.spec.dataset.model_dump(by_alias=True, exclude_none=True) | {"overlength": "Fail"}
    spec = bundle.spec.model_dump(by_alias=True, exclude_none=True)
    spec |= {"dataset": dataset, "training": {"maxSequenceLength": 100}}
    found = failure(Bundle.model_validate({"spec": spec}))
    assert found.reason is FailureReason.DATASET_INVALID
    assert "train.jsonl line 61 has" in found.message
    said = (
        "tokens. spec.training.maxSequenceLength is 100. Raise spec.training.maxSequenceLength, or shorten the row, or "
        "set spec.dataset.overlength to Drop."
    )
    assert found.message.endswith(said)


@pytest.mark.parametrize("side", ["test", "validation", "train"])
def test_too_long_rows_of_each_side_are_dropped_or_named(make_bundle: MakeBundle, tmp_path: Path, side: str) -> None:
    long = [{"prompt": f"long {n}", "completion": "x" * 300} for n in range(2)]
    rows = {"test": sum_rows(30)[:5], "validation": sum_rows(30)[5:10], "train": sum_rows(30)[10:]}
    rows[side] = [*rows[side], *long]
    dataset = {name: [{"uri": str(write_rows(tmp_path / f"{name}.jsonl", found))}] for name, found in rows.items()}
    training = {"maxSequenceLength": 100}
    prepared = run(make_bundle(dataset=dataset, training=training))
    assert [len(prepared.test), len(prepared.validation), len(prepared.train)] == [5, 5, 20]
    assert prepared.preflight.overlength == 2
    found = failure(make_bundle(dataset=dataset | {"overlength": "Fail"}, training=training))
    assert f"{side}.jsonl line {len(rows[side]) - 1} has" in found.message
    assert f"(one of 2 rows of spec.dataset.{side} that are too long)" in found.message


def test_a_limit_shorter_than_every_row_is_refused(make_bundle: MakeBundle) -> None:
    found = failure(make_bundle(training={"maxSequenceLength": 16}))
    assert (found.reason, "No row is left" in found.message) == (FailureReason.DATASET_INVALID, True)


@pytest.mark.parametrize("training", [{}, {"maxSequenceLength": 512}])
def test_rows_longer_than_the_context_get_no_advice_to_raise_the_limit(
    make_bundle: MakeBundle, training: dict[str, int]
) -> None:
    rows = [{"prompt": f"long {n}", "completion": "x" * 3000} for n in range(20)]
    found = failure(make_bundle(rows=rows, training=training))
    assert found.message.endswith(
        "(one of 20 rows of spec.dataset.train that are too long). The model's context length is 512 tokens. No row is "
        "left. Shorten the rows."
    )
    told = {advice.reason: advice for advice in run(make_bundle(rows=[*rows, *sum_rows(60)])).preflight.advice or []}
    assert told["RowsLeftOut"].message.startswith("20 of 80 rows (25%) are left out")
    assert told["RowsLeftOut"].message.endswith("tokens, so shorten the rows.")


def test_a_length_over_the_models_context_is_refused(make_bundle: MakeBundle) -> None:
    found = failure(make_bundle(training={"maxSequenceLength": 513}))
    assert found.reason is FailureReason.SPEC_INVALID
    assert found.message == (
        "spec.training.maxSequenceLength is 513, but the model's context length is 512 tokens. Set "
        "spec.training.maxSequenceLength to 512 or less."
    )


def test_documents_are_split_and_their_pieces_stay_on_one_side(make_bundle: MakeBundle) -> None:
    rows = [{"text": f"Document {n}: " + "word " * 5 * n} for n in range(30)]
    prepared = run(make_bundle(rows=rows, training={"maxSequenceLength": 40}))
    assert prepared.preflight.overlength == 0
    assert prepared.resolved.max_sequence_length == 40
    pieces = sorted((e for e in (*prepared.train, *prepared.test)), key=lambda e: int(e.place.rpartition(":")[2]))
    assert "".join(piece.answer for piece in pieces) == "".join(row["text"] for row in rows)
    assert {e.place for e in prepared.train}.isdisjoint(e.place for e in prepared.test)
