"""The kept part of an object."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.store.kept import KeptJob, unpacked
from tests.unit.finetune_operator.store.objects import job

TEXTS = st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()))


@given(TEXTS)
def test_the_spec_of_a_job_is_kept_unchanged(spec: dict[str, Any]) -> None:
    kept = KeptJob.parse(job("a", 5) | {"spec": spec})
    assert unpacked(kept.spec) == spec


def test_a_spec_with_half_of_a_surrogate_pair_is_kept_unchanged() -> None:
    spec = {"model": {"uri": "s3://acme/\ud83d"}}
    assert unpacked(KeptJob.parse(job("a", 5) | {"spec": spec}).spec) == spec


def test_a_new_version_with_the_same_content_is_equal() -> None:
    first, second = KeptJob.parse(job("a", 5)), KeptJob.parse(job("a", 6))
    assert first == second
    assert first != replace(second, status=b"")


def test_of_a_job_that_has_ended_spec_and_status_are_not_kept() -> None:
    ended = KeptJob.parse(job("a", 5) | {"status": {"state": "Complete"}})
    assert (unpacked(ended.spec), unpacked(ended.status)) == ({}, {})
