"""What a platform team sets in a profile, on real nodes: GPU types, settings of the pods, and a private authority."""

import json
from collections.abc import Iterator

import pytest

from devcluster import Cluster
from devcluster.namespaces import FIRST
from tests.e2e.mutations import mutated
from tests.e2e.setting import profile
from tests.e2e.tenant import SUMS_COLUMNS, Tenant, message, sums
from tests.integration.api_proxy import S3Proxy
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job
from tests.integration.kube import PROFILES, Object
from tests.integration.waiting import wait_for

SMALL, BIG, LARGEST = (f"example.com/{name}" for name in ("small", "big", "largest"))
TYPES = [
    {"name": "largest", "resourceName": LARGEST, "memory": "81559Mi", "pricePerHour": "9.00"},
    {"name": "small", "resourceName": SMALL, "memory": "1Gi", "pricePerHour": "0.10"},
    {
        "name": "big",
        "resourceName": BIG,
        "memory": "23034Mi",
        "pricePerHour": "1.00",
        "nodeSelector": {"kubernetes.io/hostname": FIRST.name},
    },
]
"""The job needs a little more than 1 GiB."""
ID = 1_000_650_000
"""A user of a namespace's range, as OpenShift gives them: it has no entry in /etc/passwd."""
FILL_IN = f"""
[
  JSONPatch{{op: "add", path: "/spec/securityContext/runAsUser", value: {ID}}},
  JSONPatch{{op: "add", path: "/spec/securityContext/fsGroup", value: {ID}}}
]
"""
TLS_PORT = 8335


def put(tenant: Tenant, name: str, body: Object) -> str:
    """Writes the profile under this name. Returns the name."""
    body["metadata"]["name"] = name
    tenant.kube.apply(f"{PROFILES}/{name}", body)
    return name


def created(tenant: Tenant, name: str, **spec: object) -> Job:
    rows = tenant.put_rows(f"{name}.jsonl", sums(30))
    short = {"training": {"maxSteps": 1}, "evaluation": {"maxRows": 2, "baselines": ["Base"]}}
    dataset = {"train": [{"uri": rows, "columns": SUMS_COLUMNS}]}
    return tenant.create(name, rows, **{**short, "dataset": dataset, **spec})


@pytest.fixture(scope="module")
def types(tenant: Tenant, installed: Cluster) -> str:
    """Name of a profile with three GPU types, of which the node has two."""
    for resource in (SMALL, BIG):
        path = "/status/capacity/" + resource.replace("/", "~1")
        patch = json.dumps([{"op": "add", "path": path, "value": "1"}])
        installed.kubectl("patch", "node", FIRST.name, "--subresource=status", "--type=json", "-p", patch)
    body = profile(installed.s3_endpoint)
    body["spec"]["gpuTypes"] = TYPES
    return put(tenant, "types", body)


@pytest.fixture(scope="module")
def of_types(tenant: Tenant, types: str) -> dict[str, Job]:
    """Jobs that let the operator choose a type, and that name one."""
    wishes = {"chosen": {}, "too-large": {"gpuType": "small"}, "nowhere": {"gpuType": "largest"}}
    usual = {"cpu": "500m", "memory": "2Gi"}
    return {name: created(tenant, name, profileName=types, compute=usual | wish) for name, wish in wishes.items()}


@pytest.mark.thorough
def test_a_job_trains_on_the_cheapest_gpu_type_that_fits(tenant: Tenant, of_types: dict[str, Job]) -> None:
    job = of_types["chosen"]
    status = tenant.end_of(job)
    assert status["state"] == "Complete", message(status)
    fits = {estimate["gpuType"]: estimate["fits"] for estimate in status["preflight"]["estimate"]}
    assert fits == {"largest": True, "small": False, "big": True}
    chosen = status["gpuType"]
    assert (chosen["name"], chosen["reason"]) == ("big", "Cheapest")
    assert chosen["message"] == (
        "big is the cheapest of the GPU types that fit: 1.00 for an hour. The job does not fit small."
    )
    pod = job.batch_jobs()[ATTEMPT]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"][BIG] == "1"
    assert float(status["cost"]) == pytest.approx(status["gpuSeconds"] / 3600, abs=0.0001)


def test_a_job_that_does_not_fit_the_type_it_names_is_told_which_one_fits(
    tenant: Tenant, of_types: dict[str, Job]
) -> None:
    job = of_types["too-large"]
    status = tenant.end_of(job)
    assert (status["state"], ATTEMPT in job.batch_jobs()) == ("Failed", False)
    said = message(status)
    assert "of GPU memory, but small has 1Gi." in said
    assert "With spec.compute.gpuType big, the job would need" in said
    assert "These settings would fit too, the cheapest first: spec.compute.gpuType largest (" in said


def test_a_type_that_no_node_has_is_waited_for_and_named(tenant: Tenant, of_types: dict[str, Job]) -> None:
    job = of_types["nowhere"]
    told = wait_for(
        "the missing GPU to be told", lambda: str(job.ready().get("message")), lambda said: LARGEST in said, 120
    )
    assert f"add a node with {LARGEST}, or correct resourceName of gpuTypes in the FineTuneProfile" in told
    assert told.endswith("The job requests GPU type largest.")
    tenant.kube.delete(job.path)


@pytest.fixture(scope="module")
def openshift(tenant: Tenant, installed: Cluster) -> Iterator[None]:
    """Fills in the user and the group of pods of jobs whose names begin with "openshift"."""
    yield from mutated(installed, tenant, "openshift", FILL_IN, str(ID))


@pytest.fixture(scope="module")
def encrypted(installed: Cluster) -> Iterator[str]:
    """Address of S3 with a certificate of the cluster's authority, which no image trusts."""
    first = installed.nodes[0]
    keys = first.plane.certificates
    identity = (keys / "kube-apiserver.crt", keys / "kube-apiserver.key")
    proxy = S3Proxy(installed.s3_endpoint, None, first.namespaces.listen, TLS_PORT, identity)
    yield proxy.address
    proxy.close()


@pytest.fixture(scope="module")
def settings(tenant: Tenant, installed: Cluster, openshift: None, encrypted: str) -> str:
    """Name of a profile with settings of the pods and an authority. What they name exists."""
    authority = (installed.nodes[0].plane.certificates / "ca.crt").read_text()
    made: list[Object] = [
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "batch"}, "value": 7},
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "usual"}, "handler": "runc"},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "storage-ca", "namespace": tenant.namespace},
            "data": {"ca.crt": authority},
        },
    ]
    installed.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))
    installed.kubectl("label", "node", FIRST.name, "pool=ml", "--overwrite")
    body = profile(encrypted)
    for storage in body["spec"]["storages"]:
        storage["caBundle"] = {"configMapName": "storage-ca"}
    body["spec"]["pods"] = {
        "labels": {"cost-center": "research"},
        "annotations": {"acme.com/note": "nightly"},
        "priorityClassName": "batch",
        "runtimeClassName": "usual",
        "nodeSelector": {"pool": "ml"},
        "omitUserIds": True,
        "allowed": {"labels": ["team"]},
        "preflight": {"resources": {"requests": {"cpu": "250m", "memory": "512Mi"}}},
    }
    return put(tenant, "settings", body)


def test_pods_with_every_setting_run_as_a_user_of_the_namespace_and_trust_the_private_authority(
    tenant: Tenant, settings: str
) -> None:
    compute = {"cpu": "500m", "memory": "2Gi", "labels": {"team": "search"}}
    job = created(tenant, "openshift", profileName=settings, compute=compute)
    pods: dict[str, Object] = {}

    def seen() -> Object:
        for pod in job.pods():
            pods.setdefault(pod["metadata"]["labels"]["finetune.dev/step"], pod)
        return job.status()

    status = wait_for("the job to end", seen, lambda s: s.get("state") in ("Complete", "Failed"), 240)
    assert status["state"] == "Complete", message(status)
    assert set(pods) == {PREFLIGHT, "train"}
    for pod in pods.values():
        assert pod["metadata"]["labels"].items() >= {"cost-center": "research", "team": "search"}.items()
        assert pod["spec"]["securityContext"]["runAsUser"] == ID
        assert (pod["spec"]["priority"], pod["spec"]["runtimeClassName"]) == (7, "usual")
    template = job.batch_jobs()[ATTEMPT]["spec"]["template"]["spec"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(template["securityContext"])


def test_a_service_that_the_pods_do_not_trust_is_told_as_such(tenant: Tenant, encrypted: str) -> None:
    name = put(tenant, "untrusted", profile(encrypted))
    job = created(tenant, "untrusted", profileName=name, runPolicy={"maxRetries": 0})
    status = tenant.end_of(job)
    assert status["state"] == "Failed"
    said = message(status)
    assert f"The certificate of {encrypted} is not trusted (certificate verify failed: " in said
    assert "Set caBundle of this storage in the FineTuneProfile to a ConfigMap" in said
