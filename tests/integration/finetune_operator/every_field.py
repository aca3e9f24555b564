"""A profile that sets every field, and a job that sets every field of compute but the GPU type."""

from tests.integration.kube import Object

NAME = "every-field"
"""Of the profile, the ServiceAccount, the RuntimeClass and the lesser PriorityClass."""
URGENT = "every-field-urgent"
GPU = "example.com/h100"
LABELS, ANNOTATIONS = {"cost-center": "research"}, {"sidecar.istio.io/inject": "false"}
OWN_LABELS, OWN_ANNOTATIONS = {"team": "search"}, {"acme.com/note": "any text, also with spaces"}
RESOURCES = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "40Gi"}}


def taints(name: str) -> list[Object]:
    """Tolerations that set every field of one. `name`: makes them different from others."""
    return [
        {"key": name, "operator": "Equal", "value": "only", "effect": "NoSchedule"},
        {"key": f"{name}-leaves", "operator": "Exists", "effect": "NoExecute"},
    ]


PROFILE: Object = {
    "trainer": {"image": "registry.example/every-field@sha256:feed", "imagePullPolicy": "Always", "allowCPU": True},
    "gpuTypes": [
        {"name": "spot", "memory": "81559Mi", "pricePerHour": "0.80", "capacityType": "Spot"},
        {
            "name": "h100",
            "resourceName": GPU,
            "memory": "81558Mi",
            "pricePerHour": "2.50",
            "capacityType": "OnDemand",
            "nodeSelector": {"gpu.example/model": "h100"},
            "tolerations": taints("of-the-gpu"),
        },
    ],
    "storages": [
        {
            "buckets": ["acme-*"],
            "endpoint": "https://s3.example",
            "region": "eu-central-1",
            "credentialsSecretName": "s3-keys",
            "caBundle": {"configMapName": "storage-ca", "key": "authority.pem"},
        },
        {"buckets": ["prepared"], "credentialsSecretName": "prepared-keys"},
        {"buckets": ["*"], "credentialsSecretName": "other-keys"},
    ],
    "hub": {"endpoint": "https://mirror.example/hub", "tokenSecretName": "shared-token", "allowed": ["acme/*"]},
    "claims": {"allowed": ["rows-*"]},
    "preparedCache": {"uri": "s3://prepared/rows"},
    "modelCache": {"claimName": "model-cache", "maxSize": "2Ti"},
    "pods": {
        "labels": LABELS,
        "annotations": ANNOTATIONS,
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": NAME,
        "runtimeClassName": NAME,
        "nodeSelector": {"pool": "ml", "gpu.example/model": "none"},
        "tolerations": taints("of-all-pods"),
        "omitUserIds": True,
        "terminationGracePeriodSeconds": 45,
        "scratchSizeLimit": "300Gi",
        "allowed": {"labels": ["team"], "annotations": ["acme.com/*"], "priorityClassNames": [URGENT]},
        "preflight": {"queueName": "cpu", "resources": RESOURCES, "tolerations": taints("of-the-preflight")},
    },
}
COMPUTE: Object = {
    "gpusPerNode": 4,
    "nodes": 2,
    "cpu": "1500m",
    "memory": "6Gi",
    "serviceAccountName": NAME,
    "labels": OWN_LABELS,
    "annotations": OWN_ANNOTATIONS,
    "priorityClassName": URGENT,
}
JOB: Object = {
    "profileName": NAME,
    "model": {"uri": "hf://acme/base", "revision": "v1.0"},
    "dataset": {"train": [{"uri": "s3://acme-data/rows.jsonl"}, {"uri": "pvc://rows-of-2026/rows.jsonl"}]},
    "compute": COMPUTE,
    # The preflight of the test predicts that the spot type is cheaper.
    "runPolicy": {"maxInterruptions": 0, "maxRetries": 0, "keepCheckpointsSeconds": 0},
}
