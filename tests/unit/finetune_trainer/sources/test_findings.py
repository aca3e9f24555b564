"""What is said of faulty rows: bounded, by kind, with places; and how many of them a job stands."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.status.preflight import Severity
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources.cleaning_record import Change, Cleaned
from finetune_trainer.sources.findings import Findings, InvalidRow, place_of


def findings(rows: int, **invalid: int) -> Findings:
    found = Findings()
    found.rows = rows
    for kind, count in invalid.items():
        for line in range(count):
            found.invalid_row(f"s3://b/{kind}.jsonl:{line + 1}", InvalidRow(kind, "detail"))
    return found


def test_a_kind_is_listed_with_its_first_places_and_the_number_of_rows() -> None:
    found = findings(100, rare=2, frequent=40)
    found.suspicious_row("s3://b/c.json.gz:7", "odd")
    listed = found.listed()
    assert [(f.severity, f.message, f.rows) for f in listed] == [
        (Severity.ERROR, "frequent", 40),
        (Severity.ERROR, "rare", 2),
        (Severity.WARNING, "odd", 1),
    ]
    assert listed[0].places == [f"s3://b/frequent.jsonl line {n} (detail)" for n in (1, 2, 3)]
    assert listed[2].places == ["s3://b/c.json.gz item 7"]


def test_a_warning_is_no_reason_to_stop() -> None:
    found = findings(1)
    found.suspicious_row("f:1", "odd")
    found.raise_if_invalid()
    assert found.invalid == 0


@pytest.mark.parametrize(("allowed", "stops"), [(0.0, True), (0.04, True), (0.05, False), (0.5, False)])
def test_as_many_invalid_rows_as_are_allowed_do_not_stop_a_job(allowed: float, stops: bool) -> None:
    found = findings(100, broken=5)
    if not stops:
        found.raise_if_invalid(allowed)
        return
    with pytest.raises(TrainerFailure) as caught:
        found.raise_if_invalid(allowed)
    beginning = "5 of 100 rows are not valid, which is more than spec.dataset.maxInvalidFraction (0.04). "
    assert caught.value.message.startswith(beginning if allowed else "s3://b/broken.jsonl line 1: broken (detail).")


def test_messages_stay_short_for_any_file_names() -> None:
    found = Findings()
    found.rows = 50
    for n in range(50):
        found.invalid_row(f"s3://b/{'x' * 2000}/{n}.jsonl:{n}", InvalidRow("k" * 300, "d" * 600))
    assert all(len(place) <= 512 for finding in found.listed() for place in finding.places)
    assert place_of(f"s3://b/{'x' * 2000}/last.jsonl:3").endswith("xxx/last.jsonl line 3")


@given(
    st.lists(st.tuples(st.booleans(), st.text(min_size=1, max_size=5), st.text(max_size=5)), max_size=9), st.booleans()
)
def test_findings_are_the_same_after_they_were_written_as_json(rows: list[tuple[bool, str, str]], clean: bool) -> None:
    found = Findings()
    found.rows, found.duplicates, found.taken_apart, found.near_duplicates = 20, 3, 2, None if clean else 4
    for line, (wrong, kind, detail) in enumerate(rows, start=1):
        if wrong:
            found.invalid_row(f"s3://b/a.jsonl:{line}", InvalidRow(kind, detail))
        else:
            found.suspicious_row(f"s3://b/a.jsonl:{line}", kind, detail)
    if clean:
        found.cleaned = Cleaned(2, Counter({"unicode": 2, "mask[Email]": 0}), 1, [Change("unicode", "f:1", "a", "b")])
    again = Findings()
    again.take_over(json.loads(json.dumps(found.as_json())))
    assert vars(again) == vars(found)
    assert again.listed() == found.listed()
