"""What a pod gets to read from the model hub of the profile: its token as a file, and the permission to ask."""

from finetune_api import hub, names
from finetune_api.bundle import uris_of
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.observed.pods import Object

_VOLUME = "hub"


def uses_hub(spec: FineTuneJobSpec) -> bool:
    """Whether a URI of the job is on a hub."""
    return any(hub.split(uri) for uri in uris_of(spec).values())


def environment(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[Object]:
    """Return the variables of the hub's client. It is offline unless the job uses the hub of the profile."""
    if profile.hub and uses_hub(spec):
        # The trainer gives the endpoint with each request. The variable is for requests of other libraries.
        variables = {"HF_ENDPOINT": profile.hub.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    else:
        variables = {"HF_HUB_OFFLINE": "1"}
    return [{"name": name, "value": value} for name, value in variables.items()]


def volumes(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[Object]:
    """Return the volume with the token: one key of the job's Secret, or else of the profile's."""
    token = _token(spec, profile)
    if token is None:
        return []
    secret, key = token
    # Optional, so that the trainer reports a missing token if the hub asks for one.
    source = {"secretName": secret, "items": [{"key": key, "path": names.HUB_TOKEN}], "optional": True}
    return [{"name": _VOLUME, "secret": source}]


def mounts(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[Object]:
    """Return the mount of the volume."""
    return [
        {"name": volume["name"], "mountPath": names.HUB_FOLDER, "readOnly": True} for volume in volumes(spec, profile)
    ]


def _token(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> tuple[str, str] | None:
    """Return the Secret with the token and the key in it; None if there is no token."""
    if not uses_hub(spec):
        return None
    if reference := spec.model.token_secret_ref:
        return reference.name, reference.key
    secret = profile.hub.token_secret_name if profile.hub else None
    return (secret, names.HUB_TOKEN_KEY) if secret else None
