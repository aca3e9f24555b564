"""The child objects of a FineTuneJob: ServiceAccount and RoleBinding of the namespace, bundle, and Jobs."""

from dataclasses import dataclass

from kubernetes.utils.quantity import parse_quantity

from finetune_api import names
from finetune_api.bundle import Bundle, JobIdentity, ResumePoint, bucket_of, storage_of, uris_of
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import State
from finetune_operator.observed.pods import Object
from finetune_operator.observed.world import World

USER = 65532
"""The non-root user of the images."""
PREFLIGHT_REQUESTS = {"cpu": "500m", "memory": "1Gi"}
PREFLIGHT_MEMORY = "4Gi"
"""Memory limit of the preflight, unless compute.memory is more. Rows are streamed, so most jobs need less."""
PREFLIGHT_GRACE_SECONDS = 10
TRAIN_GRACE_SECONDS = 120
"""Time between SIGTERM and SIGKILL, unless the profile sets another: long enough to store a checkpoint."""
CLEANUP_REQUESTS, CLEANUP_MEMORY = {"cpu": "100m", "memory": "256Mi"}, "1Gi"
"""Requests and memory limit of the pod that deletes checkpoints."""
CLEANUP_RETRIES = 6
"""How often Kubernetes repeats a cleanup: after 10 s, 20 s, 40 s, and so on, in all about 10 minutes."""
CLEANUP_SECONDS = 3600
"""How long a cleanup may take. It counts among the few that run at the same time, also if its pod cannot start."""
CLEANUP_KEPT_SECONDS = 24 * 3600
"""How long a cleanup stays for its log after its end."""
UNREACHABLE_SECONDS = 30
"""How long a pod may stay on a node that does not answer. Kubernetes waits five minutes, and each costs a GPU."""


@dataclass(frozen=True)
class Try:
    """What differs between the attempts of a job."""

    number: int
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


def bundle_config_map(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Object:
    """Return the input of the pods: the spec and the profile's part at the start of the job."""
    bundle = Bundle(
        job=JobIdentity(namespace=world.namespace, name=world.name, uid=world.uid, generation=world.generation),
        spec=spec,
        allow_cpu=profile.trainer.allow_cpu,
        storages=profile.storages,
        gpu_types=profile.gpu_types,
        prepared_cache=profile.prepared_cache,
        resume=_resume_point(world),
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(world, names.child_prefix(world.name, world.uid), {}),
        "immutable": True,
        "data": {names.BUNDLE_KEY: bundle.model_dump_json(by_alias=True, exclude_none=True, indent=1)},
    }


def _resume_point(world: World) -> ResumePoint | None:
    """Return where the checkpoints of the earlier job are, if it has ended and can have some."""
    earlier = world.earlier_job
    if earlier is None or earlier.state != State.FAILED:
        return None
    return ResumePoint(uid=earlier.uid, output=earlier.output)


def preflight_job(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, number: int = 1) -> Object:
    """Return the Job of the preflight. It requests no GPU and has no node selector of a GPU."""
    pod = _pod_spec(world, spec, profile, ["preflight"])
    pod["terminationGracePeriodSeconds"] = PREFLIGHT_GRACE_SECONDS
    memory = max(PREFLIGHT_MEMORY, spec.compute.memory, key=parse_quantity)
    pod["containers"][0]["resources"] = {"requests": PREFLIGHT_REQUESTS, "limits": {"memory": memory}}
    labels = {names.LABEL_STEP: "preflight"}
    queue = profile.pods.preflight.queue_name
    name = names.preflight_name(world.name, world.uid, number)
    return _job(world, name, {**labels, **_queued(world, queue)}, labels, pod)


def attempt_job(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, attempt: Try) -> Object:
    """Return the Job of a training attempt. It requests GPUs of the profile's type, and CPU and memory for each."""
    gpu = profile.gpu_types[0]
    halvings = ["--halvings", str(attempt.halvings)] if attempt.halvings else []
    pod = _pod_spec(world, spec, profile, ["train", "--attempt", str(attempt.number), *halvings])
    grace = profile.pods.termination_grace_period_seconds or TRAIN_GRACE_SECONDS
    pod["terminationGracePeriodSeconds"] = grace
    pod["containers"][0]["env"].append({"name": names.GRACE_VARIABLE, "value": str(grace)})
    gpus = spec.compute.gpus_per_node
    limits = {"memory": _times(gpus, spec.compute.memory), gpu.resource_name: str(gpus)}
    pod["containers"][0]["resources"] = {
        "requests": {"cpu": _times(gpus, spec.compute.cpu), **limits},
        "limits": limits,
    }
    if gpu.node_selector:
        pod["nodeSelector"] = gpu.node_selector
    if gpu.tolerations:
        pod["tolerations"] += [t.model_dump(by_alias=True, exclude_none=True) for t in gpu.tolerations]
    if attempt.avoided:
        pod["affinity"] = _away_from(attempt.avoided)
    labels = {names.LABEL_STEP: "train", names.LABEL_ATTEMPT: str(attempt.number)}
    name = names.attempt_name(world.name, world.uid, attempt.number)
    return _job(world, name, {**labels, **_queued(world, world.queue)}, labels, pod)


def _times(count: int, quantity: str) -> str:
    """Return a quantity `count` times."""
    return quantity if count == 1 else f"{(count * parse_quantity(quantity)).normalize():f}"


def cleanup_job(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Object:
    """Return the Job that deletes the work folder of a failed job. It requests no GPU, and uses the preflight's queue.

    Kubernetes repeats it, not the operator: all its failures have one end, and no attempt depends on it."""
    pod = _pod_spec(world, spec, profile, [names.CLEANUP])
    pod["terminationGracePeriodSeconds"] = PREFLIGHT_GRACE_SECONDS
    pod["containers"][0]["resources"] = {"requests": CLEANUP_REQUESTS, "limits": {"memory": CLEANUP_MEMORY}}
    labels = {names.LABEL_STEP: names.CLEANUP}
    queued = _queued(world, profile.pods.preflight.queue_name)
    job = _job(world, names.cleanup_name(world.name, world.uid), {**labels, **queued}, labels, pod)
    job["spec"] |= {
        "backoffLimit": CLEANUP_RETRIES,
        "activeDeadlineSeconds": CLEANUP_SECONDS,
        "ttlSecondsAfterFinished": CLEANUP_KEPT_SECONDS,
    }
    return job


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


def _metadata(world: World, name: str, labels: dict[str, str]) -> Object:
    return {
        "name": name,
        "namespace": world.namespace,
        "labels": {**_labels(world), **labels},
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.JOB_KIND,
                "name": world.name,
                "uid": world.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _labels(world: World) -> dict[str, str]:
    return {
        "app.kubernetes.io/managed-by": "finetune-operator",
        names.LABEL_JOB_UID: world.uid,
        names.LABEL_JOB_NAME: world.name,
    }


def _job(world: World, name: str, labels: dict[str, str], pod_labels: dict[str, str], pod: Object) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(world, name, labels),
        # The operator retries. A Job that restarts pods would hide why the first pod failed.
        "spec": {
            "backoffLimit": 0,
            # A resumed Job creates its next pod after the last pod has ended, so there are never two trainers.
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "labels": {**_labels(world), **pod_labels},
                    # Webhooks may add a container before the trainer. kubectl logs still shows the trainer's log.
                    "annotations": {"kubectl.kubernetes.io/default-container": names.CONTAINER},
                },
                "spec": pod,
            },
        },
    }


def _pod_spec(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, arguments: list[str]) -> Object:
    """Return a pod that meets the `restricted` Pod Security Standard. All writable volumes have a size limit."""
    secrets = _secrets(world, spec, profile)
    volumes = [
        {"name": "bundle", "configMap": {"name": names.child_prefix(world.name, world.uid)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "200Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        # Optional, so that the trainer reports a missing Secret. Otherwise the pod would never start.
        *({"name": f"storage-{i}", "secret": {"secretName": s, "optional": True}} for i, s in enumerate(secrets)),
    ]
    mounts = [
        {"name": "bundle", "mountPath": names.BUNDLE_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "scratch", "mountPath": names.SCRATCH_FOLDER},
        {"name": "shm", "mountPath": "/dev/shm"},
        *(
            {"name": f"storage-{i}", "mountPath": f"{names.STORAGE_FOLDER}/{s}", "readOnly": True}
            for i, s in enumerate(secrets)
        ),
    ]
    container = {
        "name": names.CONTAINER,
        "image": profile.trainer.image,
        "imagePullPolicy": profile.trainer.image_pull_policy,
        "args": [*arguments, f"{names.BUNDLE_FOLDER}/{names.BUNDLE_KEY}"],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": names.POD_UID_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            # Models come from the job's storage. A library must not contact a model hub.
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            # A storage without a Secret uses the pod's own identity, never the role of the node.
            {"name": "AWS_EC2_METADATA_DISABLED", "value": "true"},
            {"name": "TRITON_CACHE_DIR", "value": f"{names.SCRATCH_FOLDER}/triton"},
            {"name": "TORCHINDUCTOR_CACHE_DIR", "value": f"{names.SCRATCH_FOLDER}/inductor"},
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    return {
        "restartPolicy": "Never",
        "tolerations": [
            {
                "key": "node.kubernetes.io/unreachable",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": UNREACHABLE_SECONDS,
            }
        ],
        "serviceAccountName": spec.compute.service_account_name or names.TRAINER_SERVICE_ACCOUNT,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _secrets(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[str]:
    """Return the names of the Secrets of the storages that this job uses, each once."""
    cache = [profile.prepared_cache.uri] if profile.prepared_cache else []
    resume = _resume_point(world)
    earlier = [resume.output] if resume else []
    buckets = [bucket for uri in (*uris_of(spec).values(), *cache, *earlier) if (bucket := bucket_of(uri))]
    storages = [storage_of(bucket, profile.storages) for bucket in buckets]
    if spec.resume_from and resume is None:
        storages += profile.storages  # the earlier job was deleted after this one began: its bucket is not known
    found = [s.credentials_secret_name for s in storages if s and s.credentials_secret_name]
    return list(dict.fromkeys(found))
