"""Every manifest below tests/manifests, as `kubectl apply` sends it: with strict field validation.

A bad one says in its first line what becomes of it, and what the message has to hold, parts divided by " | ":

    # refused: FIELD | REMEDY                 the API server does not take it
    # failed REASON: FINDING | REMEDY         it is taken, and the job ends Failed before its first pod
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune_api import names
from finetune_operator import admission
from tests.integration.conftest import make_namespace
from tests.integration.jobs import Job
from tests.integration.kube import JOBS, PROFILES, Kube, Object, RefusedError
from tests.integration.operator_process import OperatorProcess

FOLDER = Path(__file__).parents[1] / "manifests"
BAD = {path.stem: path.read_text() for path in sorted((FOLDER / "bad").glob("*.yaml"))}
REFUSED = {name: text for name, text in BAD.items() if text.startswith("# refused: ")}
FAILED = {name: text for name, text in BAD.items() if text.startswith("# failed ")}
GOOD = {path.stem: path.read_text() for path in sorted((FOLDER / "good").glob("*.yaml"))}


def outcome(text: str) -> tuple[str, list[str]]:
    """What the first line says: the word before the colon and the parts after it."""
    word, _, parts = text.splitlines()[0].removeprefix("# ").partition(": ")
    return word, parts.split(" | ")


def path_of(body: Object, namespace: str) -> str:
    return PROFILES if body["kind"] == names.PROFILE_KIND else JOBS.format(namespace)


@pytest.fixture(scope="module")
def bad_jobs(kube: Kube, _operator: OperatorProcess) -> Iterator[dict[str, Job]]:
    """Those that are taken, created before the first test: some wait out the grace while the others are tested."""
    namespace = make_namespace(kube)
    _operator.start()
    yield {name: Job.create(kube, namespace, yaml.safe_load(text)) for name, text in FAILED.items()}
    kube.delete(f"/api/v1/namespaces/{namespace}")


def test_there_are_enough_of_them_and_each_says_what_becomes_of_it() -> None:
    assert len(BAD) >= 30
    assert set(REFUSED) | set(FAILED) == set(BAD)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_manifest_is_accepted(name: str, kube: Kube, namespace: str) -> None:
    body = yaml.safe_load(GOOD[name])
    kube.create(path_of(body, namespace) + "?dryRun=All", body)


@pytest.mark.usefixtures("bad_jobs")
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_manifest_is_refused_naming_field_and_remedy(name: str, kube: Kube) -> None:
    _, expected = outcome(REFUSED[name])
    body = yaml.safe_load(REFUSED[name])
    with pytest.raises(RefusedError) as refused:
        kube.create(path_of(body, "default") + "?dryRun=All", body)
    message = str(refused.value)
    assert [part for part in expected if part not in message] == [], message


@pytest.mark.parametrize("name", FAILED)
def test_a_job_that_cannot_start_fails_before_its_first_pod(name: str, bad_jobs: dict[str, Job]) -> None:
    word, expected = outcome(FAILED[name])
    reason = word.removeprefix("failed ")
    job = bad_jobs[name]
    status = job.wait_for_reason(reason, admission.GRACE.total_seconds() + 30)

    assert [part for part in expected if part not in job.ready()["message"]] == [], job.ready()["message"]
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert conditions["Failed"] == ("True", reason)
    assert conditions["Validated"] == ("False", reason)
    assert job.children() == {}
