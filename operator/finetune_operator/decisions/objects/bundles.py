"""The bundle of a job: the input of its pods, and the Secrets that the pods mount to read it.

The bundle is an immutable ConfigMap. So all pods of a job have the storages that the FineTuneProfile had when the job
began, also after the profile was changed."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from finetune_api import names
from finetune_api.bundle import Bundle, JobIdentity, ResumePoint, bucket_of, storage_of, uris_of
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec, Storage
from finetune_api.status.job import State
from finetune_operator.decisions.objects import hub_pods
from finetune_operator.decisions.plan import Plan
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World

LOOK_AGAIN = timedelta(seconds=5)
"""When a job is decided again whose foreign bundle was deleted."""


def bundle_of(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Bundle:
    """Return the bundle that exists; if there is none, a new one with the profile's part as it is now."""
    if world.bundle is not None:
        return world.bundle
    return Bundle(
        job=JobIdentity(namespace=world.namespace, name=world.name, uid=world.uid, generation=world.generation),
        spec=spec,
        allow_cpu=profile.trainer.allow_cpu,
        storages=profile.storages,
        hub=profile.hub,
        claims=profile.claims,
        gpu_types=profile.gpu_types,
        prepared_cache=profile.prepared_cache,
        scratch_size_limit=profile.pods.scratch_size_limit,
        resume=_resume_point(world),
    )


def missing(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[Object]:
    """Return the ConfigMap of the bundle, if it does not exist."""
    exists = world.bundle is not None or world.bundle_error is not None
    return [] if exists else [config_map(world, bundle_of(world, spec, profile))]


def config_map(world: World, bundle: Bundle) -> Object:
    """Return the ConfigMap that contains the bundle."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owned(world, names.child_prefix(world.name, world.uid), {}),
        "immutable": True,
        "data": {names.BUNDLE_KEY: _text(bundle)},
    }


def digest_of_next_pod(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> str:
    """Return the digest of the bundle that a pod created now gets."""
    return world.bundle_digest or digest(_text(bundle_of(world, spec, profile)))


def digest(text: str) -> str:
    """Return the sha256 of the text of a bundle, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def recorded_digest(world: World, created: Sequence[Object]) -> str | None:
    """Return the digest of the job's bundle for the status. `created`: the objects that the plan creates."""
    new = [digest(made["data"][names.BUNDLE_KEY]) for made in created if made["kind"] == "ConfigMap"]
    return new[0] if new else world.bundle_digest or world.status.bundle_digest


def is_own(world: World, bundle: Bundle, text: str) -> bool:
    """Whether the operator wrote this bundle, whose text is `text`. Else a person did, who may create ConfigMaps.

    The digest in the status decides. A bundle that the operator would write now is as good. A job that an earlier
    version began has no digest: the bundle must be for this job and its spec."""
    if world.spec is None or world.profile is None or digest(text) == world.status.bundle_digest:
        return True
    found, wanted = _lasting(bundle), _lasting(bundle_of(replace(world, bundle=None), world.spec, world.profile))
    if world.status.bundle_digest is None and world.has_pod_on_record:
        return (found.job, found.spec) == (wanted.job, wanted.spec)
    return found == wanted


def without_foreign(world: World, plan: Plan) -> Plan:
    """Return the plan with the deletion of a bundle that the operator did not write."""
    if not world.bundle_is_foreign or world.deleting:
        return plan
    name = names.child_prefix(world.name, world.uid)
    return replace(plan, delete_config_maps=[name], requeue_after=LOOK_AGAIN)


def _text(bundle: Bundle) -> str:
    return bundle.model_dump_json(by_alias=True, exclude_none=True, indent=1)


def _lasting(bundle: Bundle) -> Bundle:
    """Return the bundle without what a tenant may change while the job exists: suspend, runPolicy, and with them the
    generation."""
    job = bundle.job and bundle.job.model_copy(update={"generation": 1})
    spec = bundle.spec.model_copy(update={"suspend": None, "run_policy": None})
    return bundle.model_copy(update={"job": job, "spec": spec})


def is_lacking(world: World, run: Run) -> bool:
    """Whether the pod cannot start because somebody deleted the bundle."""
    return run.lacks(names.child_prefix(world.name, world.uid))


def misfit(world: World, run: Run) -> str | None:
    """Return the finding that a pod must be replaced, because it lacks its bundle, and does not mount what the next
    bundle needs or does not accept its content; else None."""
    if not is_lacking(world, run) or world.spec is None or world.profile is None or world.bundle_error is not None:
        return None
    bundle = bundle_of(world, world.spec, world.profile)
    authorities = [storage.ca_bundle.config_map_name for storage in storages(bundle) if storage.ca_bundle]
    token = hub_pods.token_of(bundle)
    wanted = dict.fromkeys((*secrets(bundle), *authorities, *([token[0]] if token else [])))
    absent = [name for name in wanted if name not in run.mounted]
    config_map = names.child_prefix(world.name, world.uid)
    if absent:
        return (
            f"ConfigMap {config_map} was deleted before the pod of Job {run.name} started, and the FineTuneProfile has "
            f"changed. The pod does not mount {', '.join(absent)}, which the storages or the hub need now, so it is "
            "replaced."
        )
    if run.bundle_digest and run.bundle_digest != digest_of_next_pod(world, world.spec, world.profile):
        return (
            f"ConfigMap {config_map} was deleted before the pod of Job {run.name} started, and the FineTuneProfile or "
            "spec.runPolicy has changed. The pod does not accept the new content, so it is replaced."
        )
    return None


def storages(bundle: Bundle) -> list[Storage]:
    """Return the storages that the job uses. A storage can be there several times."""
    cache = [bundle.prepared_cache.uri] if bundle.prepared_cache else []
    earlier = [bundle.resume.output] if bundle.resume else []
    uris = (*uris_of(bundle.spec).values(), *cache, *earlier)
    found = [storage_of(bucket, bundle.storages) for uri in uris if (bucket := bucket_of(uri))]
    return [storage for storage in found if storage is not None]


def secrets(bundle: Bundle) -> list[str]:
    """Return the names of the Secrets of the storages that the job uses, each once."""
    found = [storage.credentials_secret_name for storage in storages(bundle) if storage.credentials_secret_name]
    return list(dict.fromkeys(found))


def owned(world: World, name: str, more: dict[str, str]) -> Object:
    """Return the metadata of an object that is deleted with the job. `more`: labels beside those of all its objects."""
    owner = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "name": world.name, "uid": world.uid}
    return {
        "name": name,
        "namespace": world.namespace,
        "labels": {**labels(world), **more},
        "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
    }


def labels(world: World) -> dict[str, str]:
    """Return the labels of all objects of the job."""
    return {
        "app.kubernetes.io/managed-by": "finetune-operator",
        names.LABEL_JOB_UID: world.uid,
        names.LABEL_JOB_NAME: world.name,
    }


def _resume_point(world: World) -> ResumePoint | None:
    """Return where the checkpoints of the earlier job are, if it has ended and can have some."""
    earlier = world.earlier_job
    if earlier is None or earlier.state != State.FAILED:
        return None
    return ResumePoint(uid=earlier.uid, output=earlier.output)
