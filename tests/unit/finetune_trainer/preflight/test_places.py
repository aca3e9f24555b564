"""URIs of a bundle that was written by hand, which no API server has checked."""

import pytest

from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.places import check_places
from tests.field_uris import FIELDS, REFUSED, TAKEN, job_with, schemes_of


@pytest.mark.parametrize(("field", "uri"), TAKEN)
def test_a_field_takes_its_schemes(field: str, uri: str) -> None:
    check_places(FineTuneJobSpec.model_validate(job_with(field, uri)))


@pytest.mark.parametrize(("field", "uri"), REFUSED)
def test_a_field_refuses_other_schemes_and_names_its_own(field: str, uri: str) -> None:
    with pytest.raises(TrainerFailure) as caught:
        check_places(FineTuneJobSpec.model_validate(job_with(field, uri)))
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert caught.value.message.startswith(f"{field}: {uri} must ")
    assert [scheme for scheme in schemes_of(field) if scheme not in caught.value.message] == []


@pytest.mark.parametrize("field", FIELDS)
def test_a_local_path_stays_possible(field: str) -> None:
    check_places(FineTuneJobSpec.model_validate(job_with(field, "./20:15/rows.jsonl")))
