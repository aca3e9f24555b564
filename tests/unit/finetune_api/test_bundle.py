"""The bundle says the same to operator and trainer, whatever way its spec was written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.bundle import Bundle, bucket_of, storage_of, uris_of
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import Storage

GOOD = Path(__file__).parents[2] / "manifests" / "good"
SPECS = {
    path.stem: body["spec"]
    for path in sorted(GOOD.glob("*.yaml"))
    if (body := yaml.safe_load(path.read_text()))["kind"] == "FineTuneJob"
}
MINIMAL = SPECS["minimal"]

BUCKETS = st.from_regex(r"[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", fullmatch=True)


def dumped(spec: FineTuneJobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def shuffled(value: Any) -> Any:
    """The same JSON with the keys of every object the other way round, and whole numbers as the API server gives them:
    without a fraction."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_with_its_defaults_reads_as_itself(name: str) -> None:
    spec = FineTuneJobSpec.model_validate(SPECS[name])
    assert FineTuneJobSpec.model_validate(dumped(spec)) == spec


@pytest.mark.parametrize("name", SPECS)
def test_a_bundle_survives_its_config_map(name: str) -> None:
    bundle = Bundle(spec=FineTuneJobSpec.model_validate(SPECS[name]), allow_cpu=True, storages=[Storage(buckets=["*"])])
    assert Bundle.model_validate_json(bundle.model_dump_json(by_alias=True, exclude_none=True, indent=1)) == bundle


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_digest_depends_on_the_values_and_not_on_their_notation(name: str) -> None:
    said = FineTuneJobSpec.model_validate(SPECS[name])
    digest = Bundle(spec=said).spec_digest
    otherwise = FineTuneJobSpec.model_validate_json(json.dumps(shuffled(dumped(said)), indent=3))
    assert Bundle(spec=otherwise, storages=[Storage(buckets=["*"])], allow_cpu=True).spec_digest == digest
    assert len(digest) == 64


def test_the_digest_of_the_shortest_spec_never_changes_by_accident() -> None:
    """It stands in manifests of published results."""
    digest = Bundle(spec=FineTuneJobSpec.model_validate(MINIMAL)).spec_digest
    assert digest == "5aa420d3e9b8570342f14b8f299e696d52334fd6109191b4054bcb23b342175c"


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_specs_that_differ_have_digests_that_differ(one: int, other: int) -> None:
    def digest(seed: int) -> str:
        return Bundle(spec=FineTuneJobSpec.model_validate({**MINIMAL, "training": {"seed": seed}})).spec_digest

    assert (digest(one) == digest(other)) == (one == other)


@pytest.mark.parametrize(
    "change", [{"runPolicies": {}}, {"training": {"learning_rat": 1}}, {"training": {"epochs": 0}}]
)
def test_a_spec_of_another_version_is_not_half_read(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FineTuneJobSpec.model_validate({**MINIMAL, **change})


@given(st.data(), BUCKETS)
def test_the_first_storage_with_a_matching_pattern_counts(data: st.DataObject, bucket: str) -> None:
    pattern = st.sampled_from(["*", bucket, f"{bucket[:2]}*", f"?{bucket[1:]}", f"{bucket}-not"])
    patterns = data.draw(st.lists(st.lists(pattern, min_size=1, max_size=3), max_size=4))
    storages = [Storage(buckets=p, region=str(i)) for i, p in enumerate(patterns)]
    matching = [s for s in storages if any(not p.endswith("-not") for p in s.buckets)]
    assert storage_of(bucket, storages) is (matching[0] if matching else None)


@pytest.mark.parametrize(
    ("pattern", "bucket", "matches"),
    [
        ("acme-data", "acme-data", True),
        ("acme-data", "acme-data-2", False),
        ("acme-*", "acme-data", True),
        ("acme-*", "acme", False),
        ("acme-?", "acme-1", True),
        ("acme-?", "acme-12", False),
        ("*", "anything", True),
    ],
)
def test_patterns_of_buckets(pattern: str, bucket: str, matches: bool) -> None:
    assert (storage_of(bucket, [Storage(buckets=[pattern])]) is not None) == matches


@given(BUCKETS, st.text("abc/.-*", max_size=20))
def test_the_bucket_of_a_uri_is_the_part_before_the_first_slash(bucket: str, key: str) -> None:
    assert bucket_of(f"s3://{bucket}/{key}") == bucket


def test_a_local_path_has_no_bucket() -> None:
    assert bucket_of("/data/rows.jsonl") is None


def test_every_uri_is_known_by_its_field() -> None:
    spec = {**MINIMAL, "dataset": {"train": [{"uri": "s3://a-a/1.json"}], "test": [{"uri": "s3://b-b/2.json"}]}}
    assert uris_of(FineTuneJobSpec.model_validate(spec)) == {
        "spec.model.uri": "s3://acme-models/smollm2",
        "spec.dataset.train[0].uri": "s3://a-a/1.json",
        "spec.dataset.test[0].uri": "s3://b-b/2.json",
        "spec.output.uri": "s3://acme-models/tickets",
    }


@pytest.mark.parametrize(
    "said",
    [
        {"suspend": True},
        {"runPolicy": {"maxRetries": 7}},
        {"training": {"epochs": 1, "seed": 0}},
        {"profileName": "default"},
    ],
)
def test_the_digest_leaves_out_defaults_and_what_may_be_changed(said: dict[str, Any]) -> None:
    plain, other = (Bundle(spec=FineTuneJobSpec.model_validate({**MINIMAL, **more})) for more in ({}, said))
    assert other.spec_digest == plain.spec_digest


@pytest.mark.parametrize(
    ("asked", "told", "left"),
    [(None, None, ["a", "b"]), ("b", None, ["b"]), (None, "b", ["b"]), (None, "of-a-changed-profile", [])],
)
def test_the_bundle_of_a_pod_has_only_the_gpu_type_on_which_it_runs(
    asked: str | None, told: str | None, left: list[str]
) -> None:
    spec = FineTuneJobSpec.model_validate({**MINIMAL, "compute": {"gpuType": asked} if asked else {}})
    bundle = Bundle(spec=spec, gpu_types=[GpuType(name="a"), GpuType(name="b")])
    assert [gpu.name for gpu in bundle.on(told).gpu_types] == left


@pytest.mark.parametrize(
    "compute",
    [{"gpuType": "h100"}, {"labels": {"a": "b"}}, {"annotations": {"a": "b"}}, {"priorityClassName": "urgent"}],
)
def test_the_digest_does_not_depend_on_where_and_how_soon_the_job_runs(compute: dict[str, Any]) -> None:
    spec = FineTuneJobSpec.model_validate({**MINIMAL, "compute": compute})
    assert Bundle(spec=spec).spec_digest == Bundle(spec=FineTuneJobSpec.model_validate(MINIMAL)).spec_digest


def test_the_digest_depends_on_the_revision_of_the_model_and_not_on_the_token() -> None:
    def digest(**model: Any) -> str:
        spec = {**MINIMAL, "model": {"uri": "hf://acme/base"} | model}
        return Bundle(spec=FineTuneJobSpec.model_validate(spec)).spec_digest

    assert digest(tokenSecretRef={"name": "mine", "key": "token"}) == digest()
    assert digest(revision="v1") != digest()
