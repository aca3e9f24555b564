"""Where each field of a profile and of compute shows: how to look at what the operator made for the job of
`every_field`, and what is seen there."""

from typing import Any

from kubernetes.utils.quantity import parse_quantity

from finetune_api import names
from tests.integration.finetune_operator.every_field import (
    ANNOTATIONS,
    GPU,
    LABELS,
    NAME,
    OWN_ANNOTATIONS,
    OWN_LABELS,
    PROFILE,
    RESOURCES,
    URGENT,
    taints,
)
from tests.integration.finetune_operator.made import (
    STEPS,
    Look,
    amount,
    containers,
    for_both,
    grace,
    in_all,
    in_containers,
    in_pods,
    keys_of,
    mounted,
    mounts,
    of_containers,
    of_nodes,
    of_pods,
    queues,
    shared_memory,
    size_of,
    tolerating,
    variable,
)
from tests.integration.jobs import ATTEMPT, PREFLIGHT

S3_KEYS = ["prepared-keys", "s3-keys"]
TOKEN = {"secretName": "shared-token", "items": [{"key": "HF_TOKEN", "path": "token"}], "optional": True}
SHOWN: dict[str, tuple[Look, Any]] = {
    "profile.trainer.image": (of_containers(lambda c: c["image"]), in_containers(PROFILE["trainer"]["image"])),
    "profile.trainer.imagePullPolicy": (of_containers(lambda c: c["imagePullPolicy"]), in_containers("Always")),
    "profile.trainer.allowCPU": (lambda made: made.bundle["allowCPU"], True),
    "profile.gpuTypes.name": (
        lambda made: (
            made.pods[ATTEMPT]["metadata"]["labels"][names.LABEL_GPU_TYPE],
            variable(names.GPU_TYPE_VARIABLE)(containers(made.pods[ATTEMPT])[names.CONTAINER]),
        ),
        ("h100", "h100"),
    ),
    "profile.gpuTypes.resourceName": (amount("limits", GPU), {names.FETCHER: None, names.CONTAINER: 4}),
    "profile.gpuTypes.memory": (
        lambda made: [made.status["gpuType"]["memory"], *(gpu["memory"] for gpu in made.bundle["gpuTypes"])],
        ["81558Mi", "81559Mi", "81558Mi"],
    ),
    "profile.gpuTypes.pricePerHour": (lambda made: made.status["attempts"][0]["pricePerHour"], "2.50"),
    "profile.gpuTypes.capacityType": (
        lambda made: (made.status["gpuType"]["name"], made.status["gpuType"]["message"]),
        (
            "h100",
            "h100 is the cheapest of the GPU types that fit: about 3.33 for the job. Spot types were left out, because "
            "spec.runPolicy.maxInterruptions is 0.",
        ),
    ),
    "profile.gpuTypes.nodeSelector": (
        lambda made: made.pods[ATTEMPT]["spec"]["nodeSelector"]["gpu.example/model"],
        "h100",
    ),
    "profile.gpuTypes.tolerations": (tolerating(taints("of-the-gpu")), [ATTEMPT]),
    "profile.storages.buckets": (
        mounted(names.STORAGE_FOLDER, "secret", "secretName"),
        in_containers(S3_KEYS),
    ),
    "profile.storages.endpoint": (lambda made: made.bundle["storages"][0]["endpoint"], "https://s3.example"),
    "profile.storages.region": (
        lambda made: [storage["region"] for storage in made.bundle["storages"]],
        ["eu-central-1", "us-east-1", "us-east-1"],
    ),
    "profile.storages.credentialsSecretName": (
        mounted(f"{names.STORAGE_FOLDER}/s3-keys", "secret", "secretName"),
        in_containers(["s3-keys"]),
    ),
    "profile.storages.caBundle.configMapName": (
        mounted(f"{names.AUTHORITY_FOLDER}/storage-ca", "configMap", "name"),
        in_containers(["storage-ca"]),
    ),
    "profile.storages.caBundle.key": (
        lambda made: made.bundle["storages"][0]["caBundle"],
        {"configMapName": "storage-ca", "key": "authority.pem"},
    ),
    "profile.hub.endpoint": (
        of_containers(variable("HF_ENDPOINT")),
        in_containers("https://mirror.example/hub", of_cleanup=None),
    ),
    "profile.hub.tokenSecretName": (
        in_pods(
            lambda pod: {
                name: [{**volume["secret"], "defaultMode": ...} for volume in mounts(pod, each, names.HUB_FOLDER)]
                for name, each in containers(pod).items()
            }
        ),
        in_containers([{**TOKEN, "defaultMode": ...}], of_cleanup=[]),
    ),
    "profile.preparedCache.uri": (
        lambda made: (
            made.bundle["preparedCache"]["uri"],
            mounted(f"{names.STORAGE_FOLDER}/prepared-keys", "secret", "secretName")(made)[PREFLIGHT],
        ),
        ("s3://prepared/rows", {names.CONTAINER: ["prepared-keys"]}),
    ),
    "profile.modelCache.claimName": (
        mounted(names.CACHE_FOLDER, "persistentVolumeClaim", "claimName"),
        in_containers([], of_fetcher=["model-cache"]),
    ),
    "profile.modelCache.maxSize": (
        lambda made: containers(made.pods[ATTEMPT])[names.FETCHER]["args"][:3],
        [names.FETCH, "--cache-bytes", str(2 * 2**40)],
    ),
    "profile.pods.labels": (keys_of("labels", LABELS), in_all(LABELS)),
    "profile.pods.annotations": (keys_of("annotations", ANNOTATIONS), in_all(ANNOTATIONS)),
    "profile.pods.imagePullSecrets.name": (of_pods("imagePullSecrets"), in_all([{"name": "registry"}])),
    "profile.pods.runtimeClassName": (of_pods("runtimeClassName"), in_all(NAME)),
    "profile.pods.nodeSelector": (in_pods(lambda pod: pod["spec"]["nodeSelector"]["pool"]), in_all("ml")),
    "profile.pods.tolerations": (tolerating(taints("of-all-pods")), [*STEPS]),
    "profile.pods.omitUserIds": (
        in_pods(lambda pod: {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["spec"]["securityContext"])),
        in_all(set()),
    ),
    "profile.pods.terminationGracePeriodSeconds": (
        grace,
        [{PREFLIGHT: 10, ATTEMPT: 45, names.CLEANUP: 10}, 2, "43"],
    ),
    "profile.pods.scratchSizeLimit": (
        lambda made: (made.bundle["scratchSizeLimit"], size_of("scratch")(made)),
        ("300Gi", {PREFLIGHT: "300Gi", ATTEMPT: "300Gi", names.CLEANUP: "300Gi"}),
    ),
    "profile.pods.allowed.labels": (keys_of("labels", OWN_LABELS), in_all(OWN_LABELS)),
    "profile.pods.allowed.annotations": (keys_of("annotations", OWN_ANNOTATIONS), in_all(OWN_ANNOTATIONS)),
    "profile.pods.allowed.priorityClassNames": (of_pods("priorityClassName"), in_all(URGENT)),
    "profile.pods.preflight.queueName": (queues, {PREFLIGHT: "cpu", ATTEMPT: None, names.CLEANUP: "cpu"}),
    "profile.pods.preflight.resources": (
        lambda made: containers(made.pods[PREFLIGHT])[names.CONTAINER]["resources"],
        RESOURCES,
    ),
    "profile.pods.preflight.tolerations": (tolerating(taints("of-the-preflight")), [PREFLIGHT, names.CLEANUP]),
    "compute.gpusPerNode": (
        lambda made: (amount("requests", GPU)(made)[names.CONTAINER], shared_memory(made)),
        (4, ("Memory", parse_quantity("4Gi"))),
    ),
    "compute.nodes": (
        of_nodes,
        {
            "completionMode": "Indexed",
            "completions": 2,
            "parallelism": 2,
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
        },
    ),
    "compute.cpu": (amount("requests", "cpu"), for_both("6")),
    "compute.memory": (
        lambda made: [amount(kind, "memory")(made) for kind in ("requests", "limits")],
        [for_both("24Gi")] * 2,
    ),
    "compute.serviceAccountName": (of_pods("serviceAccountName"), in_all(NAME)),
    "compute.labels": (keys_of("labels", OWN_LABELS), in_all(OWN_LABELS)),
    "compute.annotations": (keys_of("annotations", OWN_ANNOTATIONS), in_all(OWN_ANNOTATIONS)),
    "compute.priorityClassName": (in_pods(lambda pod: pod["spec"]["priority"]), in_all(9)),
}
