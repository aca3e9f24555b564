"""Invalid rows are left out and counted up to the allowed number. More invalid rows fail the job."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.status.status_writer import StatusWriter
from tests.unit.finetune_trainer.conftest import MakeBundle, sum_rows, write_rows
from tests.unit.finetune_trainer.preflight_runs import failure, run, with_dataset, written


def test_the_status_names_an_invalid_row_and_the_rows_read_so_far(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = sum_rows(20)
    rows[16] = {"prompt": "What is the secret?"}
    found = failure(make_bundle(rows=rows))
    assert found.reason is FailureReason.DATASET_INVALID
    status = written(capsys)
    condition = (status.conditions or [])[0]
    assert (condition.status, condition.reason) == ("False", "DatasetInvalid")
    assert "train.jsonl line 17: completion is missing (columns found: prompt)." in condition.message
    assert condition.message.endswith("Correct the rows and create the job again.")
    assert "secret" not in condition.message
    assert status.preflight is not None
    assert (status.preflight.rows, status.preflight.invalid) == (20, 1)


def test_invalid_rows_up_to_the_allowed_number_are_left_out_and_reported(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [*sum_rows(60), {"prompt": "What?"}, "?", {"prompt": "a\x00b", "completion": "c"}]
    dataset = make_bundle().spec.dataset.model_dump(by_alias=True, exclude_none=True)
    assert failure(make_bundle(rows=rows)).reason is FailureReason.DATASET_INVALID
    prepared = run(make_bundle(rows=rows, dataset=dataset | {"maxInvalidFraction": 0.05}))
    assert len(prepared.train) + len(prepared.test) == 61
    found = written(capsys).preflight
    assert found is not None
    assert (found.rows, found.invalid) == (63, 2)
    said = [(finding.severity.value, finding.message, finding.rows) for finding in found.findings or []]
    assert said == [
        ("Error", "completion is missing", 1),
        ("Error", "the row is text, not an object", 1),
        ("Warning", "the text contains a control character", 1),
    ]
    assert (found.findings or [])[0].places[0].endswith("train.jsonl line 61 (columns found: prompt)")
    assert prepared.preflight.findings == found.findings


def test_a_status_that_cannot_be_written_does_not_hide_what_was_wrong(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: StatusWriter, **parts: Any) -> None:
        raise ConnectionError("the API server is away")

    monkeypatch.setattr(StatusWriter, "result", unreachable)
    assert failure(make_bundle(rows=[])).reason is FailureReason.DATASET_INVALID


@pytest.mark.parametrize("rows", [[], [{"prompt": "a", "completion": "b"}]])
def test_too_few_rows_are_refused(make_bundle: MakeBundle, rows: list[Any]) -> None:
    assert failure(make_bundle(rows=rows)).reason is FailureReason.DATASET_INVALID


def with_regression(make_bundle: MakeBundle, tmp_path: Path, kept: list[Any], **parts: Any) -> Bundle:
    sets = [{"name": "kept", "metric": "Loss", "maxDrop": 1, "uri": str(write_rows(tmp_path / "kept.jsonl", kept))}]
    return with_dataset(make_bundle(evaluation={"regression": sets}, **parts), maxInvalidFraction=0.05)


def test_rows_of_a_regression_set_are_apart_from_those_of_the_data(
    make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [*sum_rows(4), {"prompt": "long", "completion": "x" * 3000}]
    rows = [*sum_rows(60), {"prompt": "What?"}]
    found = run(with_regression(make_bundle, tmp_path, kept, rows=rows))
    assert len(found.regression["kept"]) == 4
    assert (found.preflight.rows, found.preflight.invalid, found.preflight.overlength) == (61, 1, 0)
    assert "RowsLeftOut" not in {advice.reason for advice in found.preflight.advice or []}
    said = "spec.evaluation.regression[0] (kept): 1 of 5 rows are longer than 512 tokens and are left out."
    assert said in capsys.readouterr().out


def test_an_invalid_row_of_a_regression_set_fails_the_job(make_bundle: MakeBundle, tmp_path: Path) -> None:
    kept = [*sum_rows(60), {"prompt": "What?"}]
    found = failure(with_regression(make_bundle, tmp_path, kept, rows=[*sum_rows(60), {"completion": "That."}]))
    assert found.reason is FailureReason.DATASET_INVALID
    assert found.message.endswith("kept.jsonl line 61: completion is missing (columns found: prompt).")
    assert "train.jsonl" not in found.message


def test_rows_that_are_empty_after_cleaning_are_reported_as_such(make_bundle: MakeBundle) -> None:
    found = failure(with_dataset(make_bundle(rows=sum_rows(60)), clean={"remove": ["(?s).+"]}))
    assert found.reason is FailureReason.SPEC_INVALID
    assert found.message.startswith(
        "spec.dataset.train contains no usable row. Rows read: 60, of which 60 empty after cleaning "
        "(spec.dataset.clean.remove[0]). Files: "
    )


def test_a_side_without_usable_rows_reports_the_causes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    held = [*sum_rows(2), {"prompt": "What?"}]
    dataset = {
        "test": [{"uri": str(write_rows(tmp_path / "test.jsonl", sum_rows(60)))}],
        "train": [{"uri": str(write_rows(tmp_path / "train.jsonl", held))}],
        "maxInvalidFraction": 0.1,
    }
    found = failure(make_bundle(dataset=dataset))
    assert found.reason is FailureReason.DATASET_INVALID
    assert found.message.startswith(
        "spec.dataset.train contains no usable row. Rows read: 3, of which 1 invalid (see status.preflight.findings), "
        "2 duplicates of rows of spec.dataset.test. Files: "
    )
