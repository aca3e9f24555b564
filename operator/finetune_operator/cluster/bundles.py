"""Reads the bundle of a job, the input of its pods, from its ConfigMap. No watch shows ConfigMaps."""

import json

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_operator.cluster.api import Api
from finetune_operator.observed.pods import Object
from finetune_operator.observed.world import World, parse_spec


def bundle_of(api: Api, world: World) -> tuple[Bundle | None, str | None]:
    """Return (bundle, error), as `bundle_in` does. Both are None if the job has none."""
    found = api.get("ConfigMap", names.child_prefix(world.name, world.uid), world.namespace)
    if found is None or world.uid not in [o["uid"] for o in found["metadata"].get("ownerReferences", [])]:
        return None, None  # a foreign object of this name is reported when the bundle is to be created
    return bundle_in(found)


def bundle_in(config_map: Object) -> tuple[Bundle | None, str | None]:
    """Return (bundle, error). The error says why this version cannot read it."""
    try:
        return parse_spec(Bundle, json.loads(config_map.get("data", {})[names.BUNDLE_KEY]), root="")
    except (KeyError, ValueError) as error:
        return None, f"{names.BUNDLE_KEY} is missing or is not JSON ({error})."
