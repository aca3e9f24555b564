"""The certificate authorities that the pods of a job trust for its storages, mounted from ConfigMaps of the tenant."""

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_operator.decisions.objects import bundles
from finetune_operator.observed.facts.pods import Object


def with_authorities(pod: Object, bundle: Bundle) -> Object:
    """Return the pod with the ConfigMaps of the storages that the job uses. Each has its own folder."""
    bundled = [storage.ca_bundle for storage in bundles.storages(bundle) if storage.ca_bundle]
    (container,) = pod["containers"]
    for i, name in enumerate(dict.fromkeys(each.config_map_name for each in bundled)):
        folder = f"{names.AUTHORITY_FOLDER}/{name}"
        container["volumeMounts"].append({"name": f"authority-{i}", "mountPath": folder, "readOnly": True})
        # Optional, so that the trainer reports a missing ConfigMap. Otherwise the pod would never start.
        pod["volumes"].append({"name": f"authority-{i}", "configMap": {"name": name, "optional": True}})
    return pod
