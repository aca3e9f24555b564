"""Carries out a plan. Every write can be repeated: names are deterministic, and a status is applied as a whole."""

import hashlib
from datetime import datetime

from finetune_api import names
from finetune_api.status.job import OPERATOR_MANAGER
from finetune_operator.cluster.api import Api, ApiError, NamespaceGoneError
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.observed.pods import Object
from finetune_operator.observed.world import World


class NameTakenError(Exception):
    """The name of a child is used by an object that does not belong to this job."""


class RefusedError(Exception):
    """The API server refused a child, for example because of a quota, a policy or an invalid value."""


def apply(api: Api, world: World, plan: Plan, now: datetime) -> None:
    """Carry out `plan`. Events are written before the status, so that no Event is lost if the process stops in between.

    Raises ApiError 409 if the job has changed since it was observed, RefusedError if the API server refuses a child,
    and NamespaceGoneError if the namespace is being deleted."""
    for body in plan.create:
        _create(api, world, body)
    for name in plan.delete_jobs:
        api.delete("Job", name, world.namespace)
    for event in plan.events:
        api.create(_event(world, event, now))
    if plan.status is not None:
        api.apply_status(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.JOB_KIND,
                # The resourceVersion prevents an outdated write, and a write to a job recreated under the same name.
                # A uid does not: the API server ignores it here.
                "metadata": {
                    "namespace": world.namespace,
                    "name": world.name,
                    "resourceVersion": world.resource_version,
                },
                "status": plan.status,
            },
            OPERATOR_MANAGER,
        )


def _create(api: Api, world: World, body: Object) -> None:
    try:
        made = api.create(body)
    except NamespaceGoneError:
        raise  # also a 403, but the tenant deletes the namespace and needs no message
    except ApiError as error:
        if error.status in (403, 422):
            child = f"{body['kind']} {body['metadata']['name']}"
            raise RefusedError(f"The API server refused {child}: {error.message}.") from error
        raise
    if not made:
        _check_owner(api, world, body)


def _check_owner(api: Api, world: World, body: Object) -> None:
    """Raise NameTakenError if the existing object has another owner. Objects of the whole namespace have no owner."""
    if "ownerReferences" not in body["metadata"]:
        return
    present = api.get(body["kind"], body["metadata"]["name"], world.namespace)
    owners = (present or {}).get("metadata", {}).get("ownerReferences", [])
    if present is not None and world.uid not in [owner["uid"] for owner in owners]:
        raise NameTakenError(f"{body['kind']} {body['metadata']['name']} exists and belongs to another owner")


def _event(world: World, event: Event, now: datetime) -> Object:
    """Return the Event as JSON. Its name depends on the reason only, so a restart does not create a second Event."""
    said = hashlib.sha256(f"{world.uid}{event.reason}".encode()).hexdigest()[:16]
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
