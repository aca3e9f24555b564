"""What a job can ask of its preflight, asked of the process that a pod runs."""

import pytest

from finetune_api.reasons import FAILURES, FailureReason
from finetune_trainer.handover.prepared import Prepared
from tests.integration.finetune_trainer.as_the_pod_runs.cases import CASES
from tests.integration.finetune_trainer.as_the_pod_runs.conftest import RunCase
from tests.integration.finetune_trainer.as_the_pod_runs.pod import Ended, Pods
from tests.integration.finetune_trainer.as_the_pod_runs.readings import READINGS, numbers


def found(ended: Ended) -> dict[str, int | None]:
    """The counts in status.preflight."""
    assert ended.code == 0, ended.log
    assert "The rehearsal of the training" not in ended.log, "it broke off"
    preflight = ended.status.preflight
    assert preflight
    steps = preflight.cleaned.steps if preflight.cleaned else []
    return {"near": preflight.near_duplicates, "same": preflight.duplicates, "invalid": preflight.invalid} | {
        step.name: step.rows for step in steps
    }


def texts(prepared: Prepared) -> str:
    """All that is said in the rows."""
    rows = [*prepared.train, *prepared.test]
    return "\n".join(message.content for row in rows for message in row.messages)


def test_every_format_and_kind_of_file_gives_the_same_turns(checked: RunCase, pods: Pods) -> None:
    ended = checked("reading")
    assert ended.code == 0, ended.log
    prepared = pods.prepared(CASES["reading"])
    for place, (name, reading) in enumerate(READINGS.items()):
        rows = [row for row in prepared.train if row.mixture == place]
        said = [[(message.role, message.content) for message in row.messages] for row in rows]
        assert said == [reading.said(number) for number in numbers(name)], name
    assert {row.answer for row in prepared.validation} == {"yes", "no"}
    assert [row.answer for row in prepared.test] == [f"It is {2 * i}." for i in range(10)]
    sources = ended.status.preflight and ended.status.preflight.sources
    assert sources
    assert [source.name for source in sources][-2:] == ["validation-1", "named-test"]


def test_rows_are_cleaned_masked_and_kept_once(checked: RunCase, pods: Pods) -> None:
    counts = found(checked("cleaning"))
    changed = ("mojibake", "unicode", "remove[0]", "whitespace", "mask[Email]", "mask[Card]", "mask[Phone]")
    assert counts == {"near": 5, "same": 3, "invalid": 1} | dict.fromkeys(changed, 1)
    said = texts(pods.prepared(CASES["cleaning"]))
    for text in (
        "café",
        "the office",
        "to <EMAIL_ADDRESS>, or call <PHONE_NUMBER> or <PHONE_NUMBER>.",
        "is <CREDIT_CARD>.",
    ):
        assert text in said
    assert "When do you close?\nAt six." in said


def test_cleaning_changes_only_what_its_settings_name(checked: RunCase, pods: Pods) -> None:
    counts = found(checked("trimming"))
    assert counts == {"near": 5, "same": 3, "invalid": 1, "whitespace": 1}
    said = texts(pods.prepared(CASES["trimming"]))
    for text in ("cafÃ©", "the oﬃce", "jane.doe@example.com", "When do you close?\nSent from my phone\nAt  six."):
        assert text in said


def test_a_row_that_is_too_long_ends_the_job_with_overlength_fail(checked: RunCase) -> None:
    ended = checked("too-long")
    assert ended.code == FAILURES[FailureReason.DATASET_INVALID].exit_code
    assert ended.message.reason is FailureReason.DATASET_INVALID
    assert "/data/sums.jsonl line 1 has" in ended.message.message
    assert "spec.training.maxSequenceLength is 16" in ended.message.message
    assert "Traceback" not in ended.log


def sides_of_twins(prepared: Prepared) -> dict[str, set[tuple[str, int]]]:
    """Where each pair of twins is, by what its prompts begin with: side of the split and cluster."""
    places: dict[str, set[tuple[str, int]]] = {}
    for side, rows in (("train", prepared.train), ("test", prepared.test)):
        for row in rows:
            if row.answer == "The same.":
                places.setdefault(row.prompt.split()[0], set()).add((side, row.cluster))
    return places


@pytest.mark.thorough
def test_rows_with_the_same_meaning_are_in_the_same_part_of_the_split(checked: RunCase, pods: Pods) -> None:
    assert found(checked("meaning-grouped"))["near"] == 10
    places = sides_of_twins(pods.prepared(CASES["meaning-grouped"]))
    assert [len(place) for place in places.values()] == [1] * 10
    assert {side for place in places.values() for side, _ in place} == {"train", "test"}


def test_of_rows_with_the_same_meaning_only_the_first_is_kept_with_near_drop(checked: RunCase, pods: Pods) -> None:
    assert found(checked("meaning-dropped"))["near"] == 10
    prepared = pods.prepared(CASES["meaning-dropped"])
    kept = [row.prompt.split()[-1] for row in (*prepared.train, *prepared.test) if row.answer == "The same."]
    assert kept == ["left29"] * 10
    assert len(prepared.train) + len(prepared.test) == 50
