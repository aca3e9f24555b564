"""Makes a plan real. Every write here may be repeated: names are deterministic, statuses are applied whole."""

import hashlib
from datetime import datetime

from finetune_api import names
from finetune_api.status.job import OPERATOR_MANAGER
from finetune_operator.cluster.api import Api, ApiError, NamespaceGoneError
from finetune_operator.decisions.plan import Event, Plan
from finetune_operator.observed.pods import Object
from finetune_operator.observed.world import World


class NameTakenError(Exception):
    """A child's name is held by an object that is not this job's."""


class RefusedError(Exception):
    """The API server does not take a child: a quota, a policy, a value it knows better than we do. Says so."""


def apply(api: Api, world: World, plan: Plan, now: datetime) -> None:
    """Carry out `plan`. Events come before the status, so that none is lost when we are stopped in between.

    Raises ApiError 409 where the job has changed since it was observed, RefusedError where a child is not taken,
    NamespaceGoneError where nothing can be created because the namespace is being deleted."""
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
                # The version keeps us from writing what no longer holds, or onto a job recreated under the same name:
                # a uid alone does not, the API server ignores it here.
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
        raise  # also a 403, and no word for the tenant, who deletes the namespace
    except ApiError as error:
        if error.status in (403, 422):
            child = f"{body['kind']} {body['metadata']['name']}"
            raise RefusedError(f"The API server does not take {child}: {error.message}.") from error
        raise
    if not made:
        _check_owner(api, world, body)


def _check_owner(api: Api, world: World, body: Object) -> None:
    """An object that is there already is ours if its owner is; objects of the whole namespace have none."""
    if "ownerReferences" not in body["metadata"]:
        return
    present = api.get(body["kind"], body["metadata"]["name"], world.namespace)
    owners = (present or {}).get("metadata", {}).get("ownerReferences", [])
    if present is not None and world.uid not in [owner["uid"] for owner in owners]:
        raise NameTakenError(f"{body['kind']} {body['metadata']['name']} exists and belongs to somebody else")


def _event(world: World, event: Event, now: datetime) -> Object:
    """Named after its reason: saying it again after a restart, perhaps in other words, is one Event."""
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
