"""Carries out a plan. Every write can be repeated: names are deterministic, and a status is applied as a whole."""

import hashlib
import logging
from datetime import datetime

from finetune_api import names
from finetune_api.reasons import FINDING_LENGTH
from finetune_api.status.job import OPERATOR_MANAGER
from finetune_operator.cluster.api import Api, ApiError, NamespaceGoneError
from finetune_operator.cluster.live_pods import has_unseen_remains
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.observed.causes import remedies
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World
from finetune_operator.store.kept import unpacked
from finetune_operator.store.store import KINDS, Store

logger = logging.getLogger(__name__)


class RefusedError(Exception):
    """The API server refused a child, for example because of a quota, a policy or an invalid value, or its name is
    used by an object that does not belong to this job. As text: the finding and what helps."""

    def __init__(self, finding: str, remedy: str) -> None:
        super().__init__(f"{finding[:FINDING_LENGTH]} {remedy}")


class RefusedDeletionError(RefusedError):
    """The API server refused to delete a Job, for example because of a policy. `is_told`: the status says already why
    the Job goes, because it was written before."""

    def __init__(self, finding: str, remedy: str, is_told: bool) -> None:
        super().__init__(finding, remedy)
        self.is_told = is_told


class OtherBundleError(Exception):
    """The job has a bundle already, with another content than the one to be created. It was made before the profile
    was changed. `config_map`: it. The pods must mount what it says."""

    def __init__(self, config_map: Object) -> None:
        super().__init__(f"ConfigMap {config_map['metadata']['name']} has another content")
        self.config_map = config_map


class OutdatedError(Exception):
    """The job or its pods have changed since they were observed. The store has the new version now."""


def apply(api: Api, store: Store, world: World, plan: Plan, now: datetime) -> None:
    """Carry out `plan`, and put what the API server answers into the store.

    Events are written before the status, so that no Event is lost if the process stops in between. One that the API
    server refuses is left out: nothing depends on an Event, and a job must end also without it. The Jobs of a job
    that ends are deleted before the status is written, because nothing is decided afterwards. Otherwise Jobs are
    deleted last: the reason for which an attempt was stopped must be on record before its pod goes. Before a Job is
    created that trains, the pods are read live: a late watch must not lead to a second trainer.

    Raises OutdatedError if the job or its pods have changed since they were observed, RefusedError if a child cannot be
    created, RefusedDeletionError if a Job cannot be deleted, OtherBundleError if the job has a bundle that was not
    observed, and NamespaceGoneError if the namespace is being deleted."""
    if plan.is_final:
        _confirm(api, store, world)
    if any(map(_trains, plan.create)) and has_unseen_remains(api, store, world):
        raise OutdatedError  # a second trainer would run beside this pod
    for body in plan.create:
        _create(api, store, world, body)
    if plan.is_final:
        _delete(api, store, world, plan)
    for event in plan.events:
        _tell(api, world, event, now)
    if plan.status is not None:
        _write_status(api, store, world, plan.status)
    if not plan.is_final:
        _delete(api, store, world, plan)


def _trains(body: Object) -> bool:
    """Whether the object is the Job of an attempt."""
    return bool(body["kind"] == "Job" and body["metadata"]["labels"][names.LABEL_STEP] == "train")


def _delete(api: Api, store: Store, world: World, plan: Plan) -> None:
    for name in plan.delete_config_maps:
        api.delete("ConfigMap", name, world.namespace)
    for name in plan.delete_networks:
        api.delete("Service", name, world.namespace)
        api.delete("NetworkPolicy", name, world.namespace)
    for name in plan.delete_jobs:
        try:
            api.delete("Job", name, world.namespace)
        except ApiError as error:
            if not _is_refusal(error):
                raise
            finding = f"The API server refused to delete Job {name}: {error.message.rstrip('. ')}."
            remedy = remedies.of_refused_deletion(error.message)
            raise RefusedDeletionError(finding, remedy, is_told=not plan.is_final) from error
        store.forget_run(world.uid, name)


def _confirm(api: Api, store: Store, world: World) -> None:
    """Raise OutdatedError if the API server has a job that can lead to another decision."""
    refresh(api, store, world)
    now = store.job(world.key)
    # The generation changes with the spec: somebody may have suspended the job, or raised its deadline.
    seen = (world.uid, world.deleting, world.generation)
    if now is None or (now.uid, now.deleting, now.generation) != seen:
        raise OutdatedError
    if now.has_ended or unpacked(now.status) != world.raw_status:
        raise OutdatedError


def refresh(api: Api, store: Store, world: World) -> None:
    """Read the job live into the store."""
    raw = api.get(names.JOB_KIND, world.name, world.namespace)
    if raw is None or raw["metadata"]["uid"] != world.uid:
        store.remove(names.JOB_KIND, world.uid)
    if raw is not None:
        store.put(names.JOB_KIND, raw)


def _write_status(api: Api, store: Store, world: World, status: Object) -> None:
    # The resourceVersion prevents an outdated write, and a write to a job recreated under the same name. A uid does
    # not: the API server ignores it here.
    metadata = {"namespace": world.namespace, "name": world.name, "resourceVersion": world.resource_version}
    body = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "metadata": metadata, "status": status}
    try:
        written = api.apply_status(body, OPERATOR_MANAGER)
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        refresh(api, store, world)
        raise OutdatedError from error
    store.put(names.JOB_KIND, written, own=True)


def _is_refusal(error: ApiError) -> bool:
    """Whether a quota, a policy or an admission webhook refuses the object, also a webhook that does not answer."""
    return error.status in (400, 403, 422) or (error.status == 500 and "failed calling webhook" in error.message)


def _create(api: Api, store: Store, world: World, body: Object) -> None:
    try:
        made = api.create(body)
    except NamespaceGoneError:
        raise  # also a 403, but the tenant deletes the namespace and needs no message
    except ApiError as error:
        if _is_refusal(error):
            child = f"{body['kind']} {body['metadata']['name']}"
            remedy = remedies.of_refused_object(body["kind"], error.message)
            raise RefusedError(f"The API server refused {child}: {error.message.rstrip('. ')}.", remedy) from error
        raise
    present = made or api.get(body["kind"], body["metadata"]["name"], world.namespace)
    if present is None:
        raise ApiError(409, f"{body['kind']} {body['metadata']['name']} existed and was deleted meanwhile")
    if made is None:
        _check_owner(world, body, present)
        if "data" in body and body["data"] != present.get("data"):
            raise OtherBundleError(present)
    if body["kind"] in KINDS:
        store.put(body["kind"], present, own=True)


def _tell(api: Api, world: World, event: Event, now: datetime) -> None:
    """Write an Event. Log one that is refused, for example by a policy for Events."""
    try:
        api.create(_event(world, event, now))
    except NamespaceGoneError:
        raise
    except ApiError as error:
        if not _is_refusal(error):
            raise
        what = f"Event {event.reason} of {world.namespace}/{world.name}"
        logger.warning("The API server refused %s: %s", what, error.message)


def _check_owner(world: World, body: Object, present: Object) -> None:
    """Raise RefusedError if the existing object has another owner. Objects of the whole namespace have no owner."""
    owners = [owner["uid"] for owner in present["metadata"].get("ownerReferences", [])]
    if "ownerReferences" in body["metadata"] and world.uid not in owners:
        kind, name = body["kind"], body["metadata"]["name"]
        finding = f"{kind} {name} exists already, and does not belong to this FineTuneJob."
        raise RefusedError(finding, remedies.of_taken_name(kind, name))


def _event(world: World, event: Event, now: datetime) -> Object:
    """Return the Event as JSON. Its name does not depend on the time, so a restart does not create a second Event."""
    said = hashlib.sha256(f"{world.uid}{event.reason}{event.occurrence}".encode()).hexdigest()[:16]
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{world.name}.{said}", "namespace": world.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.JOB_KIND,
            "namespace": world.namespace,
            "name": world.name,
            "uid": world.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1024],
        "count": 1,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "source": {"component": OPERATOR_MANAGER},
        "reportingComponent": OPERATOR_MANAGER,
    }
