"""Reads the profile of a job."""

import json

from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.observed.world import parse_spec
from finetune_operator.store.store import Store


def profile_of(store: Store, name: str) -> tuple[FineTuneProfileSpec | None, str | None]:
    """Return (profile, error). The error says why this version cannot read it. Both are None if none exists."""
    found = store.profile(name)
    return parse_spec(FineTuneProfileSpec, json.loads(found.spec)) if found else (None, None)
