"""Which URIs each field takes."""

import pytest

from finetune_api.bundle import misspelled_of, uris_of
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.uris import has_scheme
from tests.field_uris import FIELDS, JOB, REFUSED, TAKEN, job_with, schemes_of


def test_the_table_has_every_field() -> None:
    assert set(uris_of(FineTuneJobSpec.model_validate(JOB))) == set(FIELDS)


@pytest.mark.parametrize(("field", "uri"), TAKEN)
def test_a_field_takes_its_schemes(field: str, uri: str) -> None:
    assert list(misspelled_of(FineTuneJobSpec.model_validate(job_with(field, uri)))) == []


@pytest.mark.parametrize(("field", "uri"), REFUSED)
def test_a_field_refuses_other_schemes_and_names_its_own(field: str, uri: str) -> None:
    spec = FineTuneJobSpec.model_validate(job_with(field, uri))
    ((named, value, wrong),) = misspelled_of(spec)
    assert (named, value) == (field, uri)
    assert [scheme for scheme in schemes_of(field) if scheme not in wrong] == []


@pytest.mark.parametrize("path", ["data/a.jsonl", "./a:b/c.jsonl", "../a", "/a:b", "a/b:c", ".", "~/x", "3:x"])
def test_a_local_path_is_no_uri(path: str) -> None:
    assert not has_scheme(path)
