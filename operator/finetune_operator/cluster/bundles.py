"""Reads the bundle of a job, the input of its pods, from its ConfigMap. No watch shows ConfigMaps."""

import json
from dataclasses import replace

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_operator.cluster.api import Api
from finetune_operator.decisions.objects import bundles
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World, parse_spec


def with_bundle(api: Api, world: World) -> World:
    """Return the world with the bundle of the job, if it has one. `world`: with the spec, the profile and the earlier
    job."""
    found = api.get("ConfigMap", names.child_prefix(world.name, world.uid), world.namespace)
    if found is None or world.uid not in [o["uid"] for o in found["metadata"].get("ownerReferences", [])]:
        return world  # an object of another owner is reported when the bundle is to be created
    return having(world, found)


def having(world: World, config_map: Object) -> World:
    """Return the world with the bundle of this ConfigMap, or with the error why it is not used."""
    bundle, error = bundle_in(config_map)
    if bundle is None:
        return replace(world, bundle_error=error)
    text = config_map["data"][names.BUNDLE_KEY]
    if not bundles.is_own(world, bundle, text):
        return replace(world, bundle_error="The operator did not write its content.", bundle_is_foreign=True)
    return replace(world, bundle=bundle, bundle_digest=bundles.digest(text))


def bundle_in(config_map: Object) -> tuple[Bundle | None, str | None]:
    """Return (bundle, error). The error says why this version cannot read it."""
    try:
        return parse_spec(Bundle, json.loads(config_map.get("data", {})[names.BUNDLE_KEY]), root="")
    except (KeyError, ValueError) as error:
        return None, f"{names.BUNDLE_KEY} is missing or is not JSON ({error})."
