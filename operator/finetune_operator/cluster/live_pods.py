"""Reads pods live into the store, where a late watch must not lead to a wrong decision."""

from finetune_api import names
from finetune_operator.cluster.api import Api
from finetune_operator.observed.world import World
from finetune_operator.store.store import POD, Store


def read_pods(api: Api, store: Store, world: World, label: str, value: str) -> None:
    """Read the pods of the job's namespace with this label live into the store."""
    for raw in api.listed(f"/api/v1/namespaces/{world.namespace}/pods", f"{label}={value}"):
        store.put(POD, raw, own=True)


def has_unseen_remains(api: Api, store: Store, world: World) -> bool:
    """Whether a deleted Job has left a pod that the world does not have. Then the store knows it now.

    The pod may have been created just before its Job was deleted."""
    read_pods(api, store, world, names.LABEL_JOB_UID, world.uid)
    seen = {pod.uid for pods in world.remains.values() for pod in pods}
    return any(pod.uid not in seen for pods in store.remains(world.uid).values() for pod in pods)
