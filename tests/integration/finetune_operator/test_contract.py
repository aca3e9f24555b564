"""The CRDs on a real API server: accepted, explained, filled with defaults, guarded."""

from collections.abc import Iterator

import pytest

from devcluster import Cluster
from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from tests.integration.jobs import Job, manifest
from tests.integration.kube import JOBS, PROFILES, Kube, Object, RefusedError
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("doomed")

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KINDS = {names.JOBS: names.JOB_KIND, names.PROFILES: names.PROFILE_KIND}


@pytest.fixture(scope="module")
def explained(kube: Kube) -> dict[str, Object]:
    """Schema by kind, from the OpenAPI document that kubectl explain reads."""
    path = f"/openapi/v3/apis/{names.API_VERSION}"
    # The API server publishes it a moment after the CRDs are established.
    document = wait_for("the OpenAPI document", lambda: kube.find(path), lambda d: d and names.JOB_KIND in str(d))
    schemas = (document or {})["components"]["schemas"]
    return {kind: schemas[f"dev.finetune.{names.VERSION}.{kind}"] for kind in KINDS.values()}


def fields(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Every field below `schema` with its path."""
    inner = schema.get("items", schema)
    for name, child in inner.get("properties", {}).items():
        yield f"{path}{name}", child
        yield from fields(child, f"{path}{name}.")


@pytest.mark.parametrize("plural", KINDS)
def test_the_api_server_takes_the_schema_as_it_is(plural: str, kube: Kube) -> None:
    crd = kube.get(f"{CRDS}/{plural}.{names.GROUP}")
    conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
    assert (conditions["Established"], conditions["NamesAccepted"]) == ("True", "True")
    assert "NonStructuralSchema" not in conditions
    assert "preserveUnknownFields" not in str(crd["spec"]["versions"])


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_field_is_explained(kind: str, explained: dict[str, Object]) -> None:
    ours = {path: f for path, f in fields(explained[kind]) if path.startswith(("spec", "status."))}
    assert len(ours) > 10
    assert [path for path, field in ours.items() if not field.get("description", "").endswith(".")] == []


@pytest.mark.parametrize("kind", KINDS.values())
def test_kubectl_explain_lists_every_field(kind: str, explained: dict[str, Object], installed: Cluster) -> None:
    shown = installed.kubectl("explain", f"{kind.lower()}.spec", "--recursive").split("FIELDS:")[1]
    listed = [line.split()[0] for line in shown.splitlines() if "<" in line]
    spec = explained[kind]["properties"]["spec"]
    assert sorted(listed) == sorted(path.rsplit(".", 1)[-1] for path, _ in fields(spec))


@pytest.mark.usefixtures("explained")
def test_kubectl_explain_reads_like_documentation(installed: Cluster) -> None:
    text = " ".join(installed.kubectl("explain", "ftj.spec.training.learningRate").split())
    assert "FIELD: learningRate <number>" in text
    assert "Default: 2e-4; 1e-3 for models below one billion parameters; 1e-5 for method Full." in text


def test_ten_lines_come_back_with_every_default(kube: Kube, namespace: str) -> None:
    body = manifest()
    created = kube.create(JOBS.format(namespace), body)
    assert created["spec"] == FineTuneJobSpec.model_validate(body["spec"]).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    assert created["status"] == {"observedGeneration": -1}
    assert created["metadata"]["generation"] == 1


@pytest.mark.parametrize("part", ["dataset", "method", "training", "evaluation", "compute"])
def test_an_empty_block_is_filled_like_an_absent_one(part: str, kube: Kube, namespace: str) -> None:
    body = manifest()
    created = kube.create(JOBS.format(namespace) + "?dryRun=All", body)["spec"]
    body["spec"].setdefault(part, {})
    assert kube.create(JOBS.format(namespace) + "?dryRun=All", body)["spec"] == created


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"epochs": 2}},
        {"training": {"maxSteps": 5}},
        {"dataset": {"test": [{"uri": "s3://acme-data/held-out.json"}]}},
        {"method": {"lora": {"targetModules": ["q_proj"]}}},
        {"output": {"uri": "s3://acme-models/elsewhere"}},
        {"compute": {"serviceAccountName": "irsa"}},
    ],
    ids=["a value", "a field that was absent", "a list that was absent", "a list", "the output", "the account"],
)
def test_a_spec_cannot_be_changed(change: Object, kube: Kube, namespace: str) -> None:
    job = Job.create(kube, namespace, manifest())
    with pytest.raises(RefusedError, match=r"spec: .*create a FineTuneJob with another name, or delete this one first"):
        kube.merge(job.path, {"spec": change})


def test_an_unchanged_spec_can_be_applied_again_and_labels_can_change(kube: Kube, namespace: str) -> None:
    body = manifest()
    job = Job.create(kube, namespace, body)
    kube.merge(job.path, {"spec": body["spec"], "metadata": {"labels": {"team": "search"}}})
    assert job.read()["metadata"]["generation"] == 1


def test_a_profile_can_be_changed(kube: Kube) -> None:
    profile = kube.get(f"{PROFILES}/default")
    changed = kube.merge(f"{PROFILES}/default", {"spec": {"trainer": {"allowCPU": True}}})
    assert changed["spec"]["trainer"]["allowCPU"] is True
    kube.merge(f"{PROFILES}/default", {"spec": profile["spec"]})


def test_the_status_is_its_own_subresource(kube: Kube, namespace: str) -> None:
    job = Job.create(kube, namespace, manifest())
    answer = kube.merge(job.path, {"status": {"state": "Complete"}})
    assert answer["status"].get("state") != "Complete"
    kube.merge(f"{job.path}/status", {"status": {"state": "Pending"}, "spec": {"profileName": "other"}})
    assert job.read()["spec"]["profileName"] == "default"


def test_kubectl_knows_the_short_names_and_the_category(installed: Cluster, kube: Kube, namespace: str) -> None:
    Job.create(kube, namespace, manifest())
    wide = installed.kubectl("get", "ftj", "-n", namespace, "-o", "wide").splitlines()[0].split()
    assert wide == ["NAME", "STATE", "STAGE", "STEP", "OF", "BASELINE", "TUNED", "AGE", "GPU", "MESSAGE", "OUTPUT"]
    assert installed.kubectl("get", "ftp").splitlines()[0].split() == ["NAME", "IMAGE", "GPU", "AGE"]
    assert "finetunejob.finetune.dev/tickets" in installed.kubectl("get", "finetune", "-n", namespace, "-o", "name")
