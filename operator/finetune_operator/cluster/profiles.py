"""Reads the profile a job names."""

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.cluster.api import Api
from finetune_operator.observed.world import parse_spec


def profile_of(api: Api, spec: FineTuneJobSpec) -> tuple[FineTuneProfileSpec | None, str | None]:
    """The profile, or a sentence on why this version cannot read it; neither where there is none."""
    found = api.get(names.PROFILE_KIND, spec.profile_name)
    return parse_spec(FineTuneProfileSpec, found["spec"]) if found else (None, None)
