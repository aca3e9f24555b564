"""What the pods of a job get to read from the model hub: its token as a file, and the permission to ask."""

from finetune_api import hub, names
from finetune_api.bundle import Bundle, uris_of
from finetune_operator.observed.facts.pods import Object

_VOLUME = "hub"
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""The variables of the hub's client in a pod that reads nothing from a hub."""


def with_hub(pod: Object, bundle: Bundle, step: str) -> Object:
    """Return the pod with the variables of the hub's client and with the token for the hub, if there is one.

    A cleanup reads nothing from a hub, so it is offline and gets no token."""
    (container,) = pod["containers"]
    online = step != names.CLEANUP
    variables = _environment(bundle) if online else _OFFLINE
    container["env"] += [{"name": name, "value": value} for name, value in variables.items()]
    if online and (token := token_of(bundle)):
        secret, key = token
        # Optional, so that the trainer reports a missing token if the hub asks for one.
        source = {"secretName": secret, "items": [{"key": key, "path": names.HUB_TOKEN}], "optional": True}
        pod["volumes"].append({"name": _VOLUME, "secret": source})
        container["volumeMounts"].append({"name": _VOLUME, "mountPath": names.HUB_FOLDER, "readOnly": True})
    return pod


def _uses_hub(bundle: Bundle) -> bool:
    """Whether a URI of the job is on a hub, and the profile has one."""
    return bundle.hub is not None and any(hub.split(uri) for uri in uris_of(bundle.spec).values())


def _environment(bundle: Bundle) -> dict[str, str]:
    """Return the variables of the hub's client. It is offline unless the job uses the hub."""
    if bundle.hub and _uses_hub(bundle):
        # The trainer gives the endpoint with each request. The variable is for requests of other libraries.
        return {"HF_ENDPOINT": bundle.hub.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return _OFFLINE


def token_of(bundle: Bundle) -> tuple[str, str] | None:
    """Return the Secret with the token and the key in it, of the job or else of the profile; None without a token."""
    if bundle.hub is None or not _uses_hub(bundle):
        return None
    if reference := bundle.spec.model.token_secret_ref:
        return reference.name, reference.key
    return (bundle.hub.token_secret_name, names.HUB_TOKEN_KEY) if bundle.hub.token_secret_name else None
