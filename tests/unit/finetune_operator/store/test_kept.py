"""The kept part of an object."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.store.kept import KeptJob, unpacked
from tests.unit.finetune_operator.store.objects import job

READ = ("profileName", "output", "runPolicy")
"""Fields of a spec that are read before it is kept. The API server has checked their types."""
TEXTS = st.dictionaries(
    st.text().filter(lambda name: name not in READ), st.text() | st.integers() | st.lists(st.text())
)


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


def test_predictions_are_kept_until_a_gpu_type_is_chosen_and_only_what_the_choice_reads() -> None:
    estimate = {"gpuType": "l4", "memory": "11.8Gi", "fits": True, "seconds": 412, "cost": "0.09"}
    status = {"preflight": {"rows": 240, "estimate": [estimate]}, "resolved": {"totalSteps": 3}}
    kept = unpacked(KeptJob.parse(job("a", 5) | {"status": status}).status)
    assert kept == {"preflight": {"estimate": [{name: estimate[name] for name in estimate if name != "cost"}]}}
    chosen = status | {"gpuType": {"name": "l4", "reason": "OnlyType", "message": "m"}}
    assert unpacked(KeptJob.parse(job("a", 5) | {"status": chosen}).status) == {"gpuType": chosen["gpuType"]}
