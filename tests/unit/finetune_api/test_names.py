"""Names of children fit into Kubernetes' limits for every job name the CRD lets through."""

import re

from hypothesis import given
from hypothesis import strategies as st

from finetune_api import names
from finetune_api.schema import MAX_NAME_LENGTH

JOB_NAMES = st.from_regex(rf"[a-z0-9]([-a-z0-9]{{0,{MAX_NAME_LENGTH - 2}}}[a-z0-9])?", fullmatch=True)
UIDS = st.uuids().map(str)
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1123 label: also what the value of a label may be."""


@given(JOB_NAMES, UIDS, st.integers(1, 999))
def test_children_have_names_that_are_labels(name: str, uid: str, attempt: int) -> None:
    assert LABEL.fullmatch(names.preflight_name(name, uid, attempt))
    assert LABEL.fullmatch(names.attempt_name(name, uid, attempt))


@given(JOB_NAMES | st.just("a-preflight-7"), UIDS, st.integers(1, 999))
def test_the_number_of_a_preflight_is_read_from_the_name_of_its_job(name: str, uid: str, number: int) -> None:
    assert names.preflight_number(names.preflight_name(name, uid, number)) == number


@given(JOB_NAMES, UIDS, UIDS)
def test_a_job_recreated_under_its_name_has_other_children(name: str, one: str, other: str) -> None:
    same = one[:8] == other[:8]
    assert (names.preflight_name(name, one) == names.preflight_name(name, other)) == same
    assert names.attempt_name(name, one, 1) != names.attempt_name(name, one, 2)
