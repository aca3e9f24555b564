"""Which other jobs write to the place of a job: of all namespaces in S3, of its own namespace in a claim."""

from typing import Any

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_operator.cluster.rivals import rivals_of
from finetune_operator.store.store import JOB, Store
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import PROFILE, SPEC


def spec(output: str) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        SPEC.model_dump(by_alias=True, exclude_none=True) | {"output": {"uri": output}}
    )


def writer(namespace: str, name: str, output: str) -> Any:
    """A job that has passed its preflight."""
    job = objects.job()
    job["metadata"] |= {"namespace": namespace, "name": name, "uid": f"{namespace}/{name}"}
    job["spec"] = spec(output).model_dump(mode="json", by_alias=True, exclude_none=True)
    job["status"] = {"conditions": [{"type": "Validated", "status": "True"}]}
    return job


def found(output: str, *others: Any) -> list[str]:
    store = Store(lambda key: None)
    body = {"metadata": {"name": "default", "uid": "p", "resourceVersion": "1"}}
    store.put(names.PROFILE_KIND, body | {"spec": PROFILE.model_dump(mode="json", by_alias=True, exclude_none=True)})
    for other in others:
        store.put(JOB, other)
    return [rival.name for rival in rivals_of(store, ("team", "tickets"), "own", spec(output), PROFILE)]


def test_a_claim_of_the_same_name_in_another_namespace_is_another_place() -> None:
    others = [writer("team", "a", "pvc://results/run"), writer("other", "b", "pvc://results/run")]
    assert found("pvc://results/run", *others) == ["team/a"]


def test_folders_that_overlap_in_a_claim_are_found() -> None:
    others = [
        writer("team", "inside", "pvc://results/run/deep"),
        writer("team", "again", "pvc://results//run/"),
        writer("team", "beside", "pvc://results/run-2"),
        writer("team", "elsewhere", "pvc://results-2/run"),
        writer("team", "in-s3", "s3://results/run"),
    ]
    assert sorted(found("pvc://results/run", *others)) == ["team/again", "team/inside"]


def test_a_bucket_is_one_place_for_all_namespaces() -> None:
    others = [writer("team", "a", "s3://results/run"), writer("other", "b", "s3://results/run/deep")]
    assert sorted(found("s3://results/run", *others)) == ["other/b", "team/a"]
