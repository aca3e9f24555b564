"""The container that gets the base model from the cache of the profile before the trainer starts.

No other container mounts the cache, so that no library which reads a model or rows can write to it."""

from finetune_api import claims, names
from finetune_api.quantity import bytes_of
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec, ModelCache
from finetune_operator.decisions.plan import Event
from finetune_operator.observed.facts.claims import SHARED
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World

_VOLUME = "model-cache"
UNUSED = "ModelCacheUnused"
"""Reason of the Event about a cache that cannot be used."""


def wanted(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> ModelCache | None:
    """Return the cache of the profile, if the job can use one. A model in a volume is near the pod already."""
    return None if claims.split(spec.model.uri) else profile.model_cache


def unusable(world: World, cache: ModelCache) -> str | None:
    """Return why the claim of the cache cannot be used now; None if it can.

    An attempt then goes without the cache: waiting for it could take longer than a download."""
    claim = world.claims.get(cache.claim_name)
    if claim is None:
        return f"does not exist in namespace {world.namespace}"
    if claim.is_leaving:
        return "is being deleted"
    if claim.phase != "Bound":
        return f"is not bound to a volume, but {claim.phase}"
    return None if SHARED in claim.access_modes else f"does not have the access mode {SHARED}"


def events(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, number: int) -> list[Event]:
    """Return the Event that attempt `number` goes without the cache; none if it uses the cache or wants none."""
    cache = wanted(spec, profile)
    why = unusable(world, cache) if cache else None
    if cache is None or why is None:
        return []
    message = (
        f"PersistentVolumeClaim {cache.claim_name}, the cache of models of FineTuneProfile {spec.profile_name}, {why}. "
        f"Attempt {number} downloads its model itself. To use the cache, create this claim with access mode {SHARED}."
    )
    return [Event("Warning", UNUSED, message, str(number))]


def with_cache(pod: Object, world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Object:
    """Return the pod of an attempt with the container that gets the model, if there is a cache that can be used.

    The container reads what the trainer reads, with the same keys, and needs no GPU."""
    cache = wanted(spec, profile)
    if cache is None or unusable(world, cache) is not None:
        return pod
    (trainer,) = pod["containers"]
    most = ["--cache-bytes", str(bytes_of(cache.max_size))] if cache.max_size else []
    amounts = {
        kind: {name: amount for name, amount in given.items() if name in ("cpu", "memory")}
        for kind, given in trainer["resources"].items()
    }
    fetcher = {name: value for name, value in trainer.items() if name != "lifecycle"} | {
        "name": names.FETCHER,
        "args": [names.FETCH, *most, trainer["args"][-1]],
        "resources": amounts,
        "volumeMounts": [*trainer["volumeMounts"], {"name": _VOLUME, "mountPath": names.CACHE_FOLDER}],
    }
    pod["initContainers"] = [fetcher]
    pod["volumes"].append({"name": _VOLUME, "persistentVolumeClaim": {"claimName": cache.claim_name}})
    pod["securityContext"]["fsGroupChangePolicy"] = "OnRootMismatch"
    return pod
