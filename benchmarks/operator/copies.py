"""Copies a FineTuneJob and its children, in the state to which the operator itself has brought them.

So the cluster is filled in minutes, with objects that leave the operator nothing to do."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.operator.client import BATCH_JOBS, CONFIG_MAPS, JOBS, PODS, Client, Object
from finetune_api import names
from finetune_api.status.job import OPERATOR_MANAGER, State

_BY_SERVER = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "finalizers")
"""Fields of the metadata that a copy does not have. The finalizer of pods is left out so that they can be deleted."""
_JOB_UID_LABELS = ("controller-uid", "batch.kubernetes.io/controller-uid")


@dataclass(frozen=True)
class Original:
    """A FineTuneJob and its children, as the API server has them."""

    job: Object
    config_maps: list[Object]
    batch_jobs: list[Object]
    pods: list[Object]
    service_account: Object
    role_binding: Object

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])


async def read(admin: Client, namespace: str, name: str) -> Original:
    """Returns the job of this name with its children."""
    job = await admin.get(f"{JOBS.format(namespace)}/{name}")
    selector = {"labelSelector": f"{names.LABEL_JOB_UID}={job['metadata']['uid']}"}

    async def children(path: str) -> list[Object]:
        found: list[Object] = (await admin.get(path.format(namespace), **selector))["items"]
        return found

    account = await admin.get(f"{_accounts(namespace)}/{names.TRAINER_SERVICE_ACCOUNT}")
    binding = await admin.get(f"{_bindings(namespace)}/{names.TRAINER_SERVICE_ACCOUNT}")
    kinds = [await children(path) for path in (CONFIG_MAPS, BATCH_JOBS, PODS)]
    return Original(job, kinds[0], kinds[1], kinds[2], account, binding)


async def prepare(admin: Client, original: Original, namespace: str) -> None:
    """Creates what all copies in this namespace need: the ServiceAccount of the trainers and its RoleBinding."""
    rename = _renaming({original.job["metadata"]["namespace"]: namespace})
    await admin.create(_accounts(namespace), rename(_bare(original.service_account)))
    await admin.create(_bindings(namespace), rename(_bare(original.role_binding)))


async def copy_whole(admin: Client, original: Original, namespace: str, name: str) -> Object:
    """Creates a copy with status and children. Returns the copy of the FineTuneJob.

    The Job controller ignores the copied Jobs (spec.managedBy), so it creates no pods for them."""
    job = await copy_job(admin, original, namespace, name)
    rename = renaming(original, job)
    for body in original.config_maps:
        await admin.create(CONFIG_MAPS.format(namespace), rename(_bare(body)))
    for body in original.batch_jobs:
        await _copy_child_job(admin, original, body, namespace, rename)
    for manager, status in parts(original.job).items():
        await apply_status(admin, job, rename(status), manager)
    return job


async def copy_job(admin: Client, original: Original, namespace: str, name: str) -> Object:
    """Creates only the FineTuneJob, without a status. Returns it."""
    rename = _renaming({original.name: name, original.job["metadata"]["namespace"]: namespace})
    body = {key: value for key, value in original.job.items() if key != "status"}
    return await admin.create(JOBS.format(namespace), rename(_bare(body)))


async def write_as_operator(client: Client, original: Original, job: Object) -> None:
    """Writes what the operator writes for a new job up to its child Job: ConfigMap, Job and one status apply.

    The children have another label than the operator's, of the same length, so that an operator does not watch them."""
    namespace = job["metadata"]["namespace"]
    rename = renaming(original, job, {names.LABEL_JOB_UID: "finetune.dev/not-uid"})
    await client.create(CONFIG_MAPS.format(namespace), rename(_bare(original.config_maps[0])))
    await client.create(BATCH_JOBS.format(namespace), rename(bare_child_job(original.batch_jobs[0])))
    await apply_status(client, job, rename(parts(original.job)[OPERATOR_MANAGER]), OPERATOR_MANAGER)


async def hide(admin: Client, job: Object) -> None:
    """Marks a FineTuneJob as complete, so that an operator has nothing to do for it."""
    moment = job["metadata"]["creationTimestamp"]
    complete = {"type": "Complete", "status": "True", "reason": "Succeeded", "lastTransitionTime": moment}
    path = f"{JOBS.format(job['metadata']['namespace'])}/{job['metadata']['name']}/status"
    await admin.merge(path, {"status": {"state": State.COMPLETE, "conditions": [complete]}})


async def apply_status(client: Client, job: Object, status: Object, manager: str) -> None:
    """Applies a part of the status of a FineTuneJob."""
    metadata = {key: job["metadata"][key] for key in ("namespace", "name")}
    body = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "metadata": metadata, "status": status}
    await client.apply(f"{JOBS.format(metadata['namespace'])}/{metadata['name']}/status", body, manager)


def renaming(original: Original, job: Object, more: dict[str, str] | None = None) -> Callable[[Object], Object]:
    """Returns a function that gives an object of the original the names and the uid of the copy `job`.

    `more`: other texts to replace, by the text to be replaced."""
    old, new = original.job["metadata"], job["metadata"]
    prefixes = [names.child_prefix(metadata["name"], metadata["uid"]) for metadata in (old, new)]
    pairs = {old["uid"]: new["uid"], prefixes[0]: prefixes[1]}
    return _renaming(pairs | {old["name"]: new["name"], old["namespace"]: new["namespace"]} | (more or {}))


def parts(job: Object) -> dict[str, Object]:
    """Returns the status of a FineTuneJob by field manager, from its managedFields."""
    found: dict[str, Object] = {}
    for entry in job["metadata"]["managedFields"]:
        if entry.get("subresource") != "status":
            continue
        fields = entry["fieldsV1"]["f:status"]
        status = {key: value for key, value in job["status"].items() if f"f:{key}" in fields}
        own = [json.loads(key[2:])["type"] for key in fields.get("f:conditions", {}) if key.startswith("k:")]
        if own:
            status["conditions"] = [c for c in job["status"]["conditions"] if c["type"] in own]
        found[entry["manager"]] = status
    return found


def bare_child_job(job: Object) -> Object:
    """Returns the Job as its creator wrote it: without a status, and without the uid that the API server adds."""
    body: Object = json.loads(json.dumps({key: value for key, value in _bare(job).items() if key != "status"}))
    body["spec"].pop("selector")
    for metadata in (body["metadata"], body["spec"]["template"]["metadata"]):
        for label in _JOB_UID_LABELS:
            metadata.get("labels", {}).pop(label, None)
    return body


async def _copy_child_job(
    admin: Client, original: Original, job: Object, namespace: str, rename: Callable[[Object], Object]
) -> None:
    body = rename(bare_child_job(job))
    body["spec"]["managedBy"] = "finetune.dev/benchmark"
    made = await admin.create(BATCH_JOBS.format(namespace), body)
    path = f"{BATCH_JOBS.format(namespace)}/{made['metadata']['name']}/status"
    await admin.merge(path, {"status": job["status"]})
    own_uid = _renaming({job["metadata"]["uid"]: made["metadata"]["uid"]})
    for pod in original.pods:
        if job["metadata"]["uid"] in [owner["uid"] for owner in pod["metadata"]["ownerReferences"]]:
            copied = own_uid(rename(_bare(pod)))
            await admin.create(PODS.format(namespace), copied)
            path = f"{PODS.format(namespace)}/{copied['metadata']['name']}/status"
            await admin.merge(path, {"status": copied["status"]})


def _bare(body: Object) -> Object:
    """Returns the object without the metadata that the API server sets."""
    metadata = {key: value for key, value in body["metadata"].items() if key not in _BY_SERVER}
    return {**body, "metadata": metadata}


def _renaming(pairs: dict[str, str]) -> Callable[[Object], Object]:
    """Returns a function that replaces texts in all fields of an object, in this order."""

    def rename(body: Object) -> Object:
        text = json.dumps(body)
        for old, new in pairs.items():
            text = text.replace(old, new)
        renamed: Object = json.loads(text)
        return renamed

    return rename


def _accounts(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/serviceaccounts"


def _bindings(namespace: str) -> str:
    return f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
