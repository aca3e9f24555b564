"""The child objects of a FineTuneJob: ServiceAccount and RoleBinding of the namespace, and the Jobs with their pods.

The bundle decides what a pod reads and which Secrets it mounts. All attempts use the GPU type of the same name. The
FineTuneProfile as it is now decides what this type selects and tolerates, the image, the queue, the grace period and
all other settings of each new pod."""

import re
from dataclasses import dataclass

from finetune_api import names
from finetune_api.quantity import times
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.pods import scratch_size
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions.objects import authorities, bundles, claims, gangs, hub_pods, model_cache, pod_settings
from finetune_operator.decisions.objects.allowed import not_allowed
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World

USER = 65532
"""The non-root user of the images."""
PREFLIGHT_REQUESTS = {"cpu": "500m", "memory": "1Gi"}
PREFLIGHT_MEMORY = "4Gi"
"""Memory limit of the preflight, unless compute.memory is more. Rows are streamed, so most jobs need less."""
PREFLIGHT_GRACE_SECONDS = 10
TRAIN_GRACE_SECONDS = 120
"""Time from the request to stop to SIGKILL, unless the profile sets another: long enough to store a checkpoint."""
SIGTERM_DELAY_SECONDS = 2
"""Time from the request to stop to SIGTERM. Linux drops a signal to the first process of a container that has no
handler yet, and Python needs a moment to start. A pod that is stopped right after its start would train on."""
SHARED_MEMORY = "1Gi"
"""Size of /dev/shm for each GPU. The processes of several GPUs exchange data there."""
CLEANUP_REQUESTS, CLEANUP_MEMORY = {"cpu": "100m", "memory": "256Mi"}, "1Gi"
"""Requests and memory limit of the pod that deletes checkpoints."""
CLEANUP_RETRIES = 6
"""How often Kubernetes repeats a cleanup: after 10 s, 20 s, 40 s, and so on, in all about 10 minutes."""
CLEANUP_SECONDS = 3600
"""How long a cleanup may take. It counts among the few that run at the same time, also if its pod cannot start."""
CLEANUP_KEPT_SECONDS = 24 * 3600
"""How long a cleanup stays for its log after its end."""
_LABEL_VALUE = re.compile("[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
UNREACHABLE_SECONDS = 30
"""How long a pod may stay on a node that does not answer. Kubernetes waits five minutes, and each costs a GPU."""


@dataclass(frozen=True)
class Try:
    """What differs between the attempts of a job."""

    number: int
    gpu: GpuType
    """The GPU type that the attempt requests."""
    halvings: int = 0
    """How often an earlier attempt ran out of GPU memory, so that the trainer halves its micro-batch."""
    avoided: tuple[str, ...] = ()
    """Nodes on which the attempt must not run."""


def service_account(world: World) -> Object:
    """Return the trainer's ServiceAccount. There is one per namespace, and it outlives the job."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": names.TRAINER_SERVICE_ACCOUNT, "namespace": world.namespace},
    }


def role_binding(world: World) -> Object:
    """Return the RoleBinding with which the ServiceAccount may write statuses, within the admission policy."""
    account = names.TRAINER_SERVICE_ACCOUNT
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": account, "namespace": world.namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": world.namespace}],
    }


def groundwork(world: World, spec: FineTuneJobSpec) -> list[Object]:
    """Return the missing objects of the namespace that every pod of the job needs."""
    if spec.compute.service_account_name not in (None, names.TRAINER_SERVICE_ACCOUNT):
        return []
    account = [] if world.service_account_exists else [service_account(world)]
    return account if world.role_binding_exists else [*account, role_binding(world)]


def preflight_job(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, number: int = 1) -> Object:
    """Return the Job of the preflight. It requests no GPU and has no node selector of a GPU."""
    pod = _pod_spec(world, spec, profile, ["preflight"])
    pod["terminationGracePeriodSeconds"] = PREFLIGHT_GRACE_SECONDS
    asked, usual = profile.pods.preflight, {"requests": PREFLIGHT_REQUESTS, "limits": {"memory": PREFLIGHT_MEMORY}}
    pod["containers"][0]["resources"] = pod_settings.resources(asked.resources, usual, spec.compute.memory)
    pod["tolerations"] += pod_settings.tolerated(asked.tolerations)
    labels = {names.LABEL_STEP: "preflight"}
    queue = profile.pods.preflight.queue_name
    name = names.preflight_name(world.name, world.uid, number)
    job = _job(world, name, {**labels, **_queued(world, queue)}, labels, pod)
    return pod_settings.with_settings(job, spec, profile)


def attempt_job(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, attempt: Try) -> Object:
    """Return the Job of a training attempt. Each of its pods requests GPUs of the attempt's type, and CPU and memory
    for each GPU."""
    gpu = attempt.gpu
    halvings = ["--halvings", str(attempt.halvings)] if attempt.halvings else []
    arguments = ["train", "--attempt", str(attempt.number), *halvings]
    gpus = spec.compute.gpus_per_node
    pod = _pod_spec(world, spec, profile, arguments, times(gpus, SHARED_MEMORY))
    grace = profile.pods.termination_grace_period_seconds or TRAIN_GRACE_SECONDS
    pod["terminationGracePeriodSeconds"] = grace
    if delay := min(SIGTERM_DELAY_SECONDS, grace // 2):
        pod["containers"][0]["lifecycle"] = {"preStop": {"sleep": {"seconds": delay}}}
    pod["containers"][0]["env"] += [
        {"name": names.GRACE_VARIABLE, "value": str(grace - delay)},
        {"name": names.GPU_TYPE_VARIABLE, "value": gpu.name},
    ]
    limits = {"memory": spec.compute.pod_memory, gpu.resource_name: str(gpus)}
    pod["containers"][0]["resources"] = {
        "requests": {"cpu": times(gpus, spec.compute.cpu), **limits},
        "limits": limits,
    }
    if gpu.node_selector:
        pod["nodeSelector"] = gpu.node_selector
    pod["tolerations"] += pod_settings.tolerated(gpu.tolerations)
    if attempt.avoided:
        pod["affinity"] = _away_from(attempt.avoided)
    pod = model_cache.with_cache(pod, world, spec, profile)
    labels = {
        names.LABEL_STEP: "train",
        names.LABEL_ATTEMPT: str(attempt.number),
        **_label_of(gpu),
    }
    name = names.attempt_name(world.name, world.uid, attempt.number)
    job = _job(world, name, {**labels, **_queued(world, world.queue)}, labels, pod)
    return pod_settings.with_settings(gangs.with_nodes(job, world, spec), spec, profile)


def _label_of(gpu: GpuType) -> dict[str, str]:
    """Return the label with the GPU type; none if a profile from before the rule for names has another name."""
    return {names.LABEL_GPU_TYPE: gpu.name} if _LABEL_VALUE.fullmatch(gpu.name) else {}


def cleanup_job(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Object:
    """Return the Job that deletes the work folder of a failed job. It requests no GPU, and uses the preflight's queue.

    Kubernetes repeats it, not the operator: all its failures have one end, and no attempt depends on it."""
    pod = _pod_spec(world, spec, profile, [names.CLEANUP])
    pod["terminationGracePeriodSeconds"] = PREFLIGHT_GRACE_SECONDS
    pod["containers"][0]["resources"] = {"requests": CLEANUP_REQUESTS, "limits": {"memory": CLEANUP_MEMORY}}
    pod["tolerations"] += pod_settings.tolerated(profile.pods.preflight.tolerations)
    labels = {names.LABEL_STEP: names.CLEANUP}
    queued = _queued(world, profile.pods.preflight.queue_name)
    job = _job(world, names.cleanup_name(world.name, world.uid), {**labels, **queued}, labels, pod)
    job["spec"] |= {
        "backoffLimit": CLEANUP_RETRIES,
        "activeDeadlineSeconds": CLEANUP_SECONDS,
        "ttlSecondsAfterFinished": CLEANUP_KEPT_SECONDS,
    }
    return pod_settings.with_settings(job, _allowed(spec, profile), profile)


def _allowed(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> FineTuneJobSpec:
    """Return the spec without what it sets for pods, if the profile does not allow it now. A cleanup cannot wait for
    that, as a job can."""
    if not_allowed(spec, profile) is None:
        return spec
    own = dict.fromkeys(("labels", "annotations", "priority_class_name"))
    return spec.model_copy(update={"compute": spec.compute.model_copy(update=own)})


def _away_from(nodes: tuple[str, ...]) -> Object:
    """Return an affinity against these nodes, by their names: the label kubernetes.io/hostname can differ."""
    others = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]  # one name in each
    terms = [{"matchFields": others}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def _queued(world: World, queue: str | None) -> dict[str, str]:
    """Return Kueue's labels of a Job: its queue, and the job's priority in it. Without a queue there are none."""
    if not queue:
        return {}
    priority = {names.LABEL_PRIORITY_CLASS: world.priority_class} if world.priority_class else {}
    return {names.LABEL_QUEUE: queue, **priority}


def _job(world: World, name: str, labels: dict[str, str], pod_labels: dict[str, str], pod: Object) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": bundles.owned(world, name, labels),
        # The operator retries. A Job that restarts pods would hide why the first pod failed.
        "spec": {
            "backoffLimit": 0,
            # A resumed Job creates its next pod after the last pod has ended, so there are never two trainers.
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "labels": {**bundles.labels(world), **pod_labels},
                    # Webhooks may add a container before the trainer. kubectl logs still shows the trainer's log.
                    "annotations": {"kubectl.kubernetes.io/default-container": names.CONTAINER},
                },
                "spec": pod,
            },
        },
    }


def _pod_spec(
    world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, arguments: list[str], shared: str = SHARED_MEMORY
) -> Object:
    """Return a pod that meets the `restricted` Pod Security Standard, with one container and `shared` in /dev/shm."""
    bundle = bundles.bundle_of(world, spec, profile)
    secrets = bundles.secrets(bundle)
    unreachable = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    pod = {
        "restartPolicy": "Never",
        "tolerations": [{**unreachable, "tolerationSeconds": UNREACHABLE_SECONDS}],
        "serviceAccountName": spec.compute.service_account_name or names.TRAINER_SERVICE_ACCOUNT,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            _trainer(profile, arguments, secrets, bundles.digest_of_next_pod(world, spec, profile)),
        ],
        "volumes": _volumes(world, profile, secrets, shared),
    }
    step = arguments[0]
    pod = hub_pods.with_hub(authorities.with_authorities(pod, bundle), bundle, step)
    return claims.with_claims(pod, bundle, step)


def _volumes(world: World, profile: FineTuneProfileSpec, secrets: list[str], shared: str) -> list[Object]:
    """Return the volumes of a pod. All writable volumes have a size limit."""
    return [
        {"name": "bundle", "configMap": {"name": names.child_prefix(world.name, world.uid)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
        {"name": "scratch", "emptyDir": {"sizeLimit": scratch_size(profile.pods.scratch_size_limit)}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
        # Optional, so that the trainer reports a missing Secret. Otherwise the pod would never start.
        *({"name": f"storage-{i}", "secret": {"secretName": s, "optional": True}} for i, s in enumerate(secrets)),
    ]


def _mounts(secrets: list[str]) -> list[Object]:
    """Return where the volumes are mounted. Each Secret has its own folder, in which the trainer finds it by name."""
    folders = [(f"storage-{i}", f"{names.STORAGE_FOLDER}/{secret}") for i, secret in enumerate(secrets)]
    return [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "scratch", "mountPath": names.SCRATCH_FOLDER},
        {"name": "shm", "mountPath": "/dev/shm"},
        *(
            {"name": name, "mountPath": folder, "readOnly": True}
            for name, folder in (("bundle", names.BUNDLE_FOLDER), *folders)
        ),
    ]


def _trainer(profile: FineTuneProfileSpec, arguments: list[str], secrets: list[str], digest: str) -> Object:
    """Return the container of a pod. The bundle is the last argument. `digest`: that of the bundle."""
    return {
        "name": names.CONTAINER,
        "image": profile.trainer.image,
        "imagePullPolicy": profile.trainer.image_pull_policy,
        "args": [*arguments, f"{names.BUNDLE_FOLDER}/{names.BUNDLE_KEY}"],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": names.BUNDLE_DIGEST_VARIABLE, "value": digest},
            {"name": names.POD_UID_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            # A storage without a Secret uses the pod's own identity, never the role of the node.
            {"name": "AWS_EC2_METADATA_DISABLED", "value": "true"},
            {"name": "TRITON_CACHE_DIR", "value": f"{names.SCRATCH_FOLDER}/triton"},
            {"name": "TORCHINDUCTOR_CACHE_DIR", "value": f"{names.SCRATCH_FOLDER}/inductor"},
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(secrets),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
