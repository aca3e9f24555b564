"""Reads the profile of a job."""

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.cluster.api import Api
from finetune_operator.observed.world import parse_spec


def profile_of(api: Api, spec: FineTuneJobSpec) -> tuple[FineTuneProfileSpec | None, str | None]:
    """Return (profile, error). The error says why this version cannot read it. Both are None if none exists."""
    found = api.get(names.PROFILE_KIND, spec.profile_name)
    return parse_spec(FineTuneProfileSpec, found["spec"]) if found else (None, None)
