"""Every manifest below tests/manifests, as `kubectl apply` sends it: with strict field validation.

Those that are taken and then fail are in test_patience.
"""

import pytest
import yaml

from finetune_api import names
from tests.field_uris import FIELDS, TAKEN, job_with, schemes_of
from tests.field_uris import REFUSED as WRONG_URIS
from tests.integration.finetune_operator.manifests import BAD, FAILED, GOOD, REFUSED, outcome
from tests.integration.kube import JOBS, PROFILES, Kube, Object, RefusedError

KIND = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND}
pytestmark = pytest.mark.usefixtures("doomed")


def path_of(body: Object, namespace: str) -> str:
    path = PROFILES if body["kind"] == names.PROFILE_KIND else JOBS.format(namespace)
    return f"{path}?dryRun=All"


def test_there_are_enough_of_them_and_each_says_what_becomes_of_it() -> None:
    assert len(BAD) >= 30
    assert set(REFUSED) | set(FAILED) == set(BAD)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_manifest_is_accepted(name: str, kube: Kube, namespace: str) -> None:
    body = yaml.safe_load(GOOD[name])
    kube.create(path_of(body, namespace), body)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_takes_its_schemes_and_refuses_others_with_a_sentence_that_names_them(field: str, kube: Kube) -> None:
    for uri in (uri for named, uri in TAKEN if named == field):
        kube.create(path_of(job_of(field, uri), "default"), job_of(field, uri))
    for uri in (uri for named, uri in WRONG_URIS if named == field):
        with pytest.raises(RefusedError) as refused:
            kube.create(path_of(job_of(field, uri), "default"), job_of(field, uri))
        message = str(refused.value)
        assert [part for part in (field, *schemes_of(field)) if part not in message] == [], message


def job_of(field: str, uri: str) -> Object:
    """A job with this URI in this field."""
    metadata = {"name": "places"}
    return {**KIND, "metadata": metadata, "spec": job_with(field, uri)}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_manifest_is_refused_naming_field_and_remedy(name: str, kube: Kube) -> None:
    _, expected = outcome(REFUSED[name])
    body = yaml.safe_load(REFUSED[name])
    with pytest.raises(RefusedError) as refused:
        kube.create(path_of(body, "default"), body)
    message = str(refused.value)
    assert [part for part in expected if part not in message] == [], message
