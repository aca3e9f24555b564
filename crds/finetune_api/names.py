"""Names that the operator and the trainer share."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
JOB_KIND, JOBS = "FineTuneJob", "finetunejobs"
PROFILE_KIND, PROFILES = "FineTuneProfile", "finetuneprofiles"

LABEL_JOB_UID = f"{GROUP}/job-uid"
"""Label of every child: uid of the FineTuneJob. The operator watches only objects with this label."""
LABEL_JOB_NAME = f"{GROUP}/job-name"
"""Label of every child: name of the FineTuneJob, for label selectors of users."""
LABEL_STEP = f"{GROUP}/step"
"""Label of Jobs and Pods: preflight, train or cleanup."""
CLEANUP = "cleanup"
"""Value of LABEL_STEP of the Job that deletes the work folder of a failed job, and the trainer's argument."""
LABEL_ATTEMPT = f"{GROUP}/attempt"
"""Label of the Jobs and Pods of attempts: number of the attempt."""
LABEL_GPU_TYPE = f"{GROUP}/gpu-type"
"""Label of the Jobs and Pods of attempts: name of their GPU type in the profile."""
LABEL_INDEX = "batch.kubernetes.io/job-completion-index"
"""Label that Kubernetes sets on the pods of an Indexed Job: index of the pod."""
LABEL_CONTROLLER = "batch.kubernetes.io/controller-uid"
"""Label that Kubernetes sets on the pods of a Job: uid of the Job."""
TEMPORARY_TAG = f"{GROUP}/temporary"
"""Tag of objects in S3 that a job needs only while it runs. Its value is true."""
WORK_FOLDER = ".work"
"""Folder in output.uri for everything that a job needs only while it runs."""
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a FineTuneJob and its attempts: name of the LocalQueue of Kueue."""
LABEL_PRIORITY_CLASS = "kueue.x-k8s.io/priority-class"
"""Label of a FineTuneJob, and of its Jobs that have a queue: name of the WorkloadPriorityClass of Kueue."""

TRAINER_SERVICE_ACCOUNT = "finetune-trainer"
"""Name of the ServiceAccount, RoleBinding and ClusterRole of the trainer pods."""

CONTAINER = "trainer"
FETCH, FETCHER = "fetch", "fetch-model"
"""The trainer's argument, and the name of the init container, that gets the base model from the cache or its source."""
POD_UID_VARIABLE, GRACE_VARIABLE = "POD_UID", "GRACE_SECONDS"
"""Environment variables of a trainer pod: its own uid, and the seconds between SIGTERM and SIGKILL."""
GPU_TYPE_VARIABLE = "FINETUNE_GPU_TYPE"
"""Environment variable of a training pod: name of its GPU type in the bundle. An older trainer image ignores it, and
would refuse an argument that it does not know."""
INDEX_VARIABLE, NODE_NAME_VARIABLE = "JOB_COMPLETION_INDEX", "NODE_NAME"
"""Environment variables of a training pod on one of several nodes: the number of the pod, from 0, which Kubernetes sets
for an Indexed Job, and the name of its node."""
NODE_PORT = 29400
"""Port at which the first of several training pods listens for the others. The next port is for torch.distributed."""
BUNDLE_DIGEST_VARIABLE = "FINETUNE_BUNDLE_DIGEST"
"""Environment variable of a trainer pod: sha256 of its bundle as the operator wrote it, as hex. The pod refuses another
one, which somebody has put in its place."""
BUNDLE_KEY = "bundle.json"
BUNDLE_FOLDER = "/etc/finetune/bundle"
STORAGE_FOLDER = "/etc/finetune/storage"
"""STORAGE_FOLDER/SECRET_NAME/{AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY}: credentials as files."""
HUB_FOLDER, HUB_TOKEN = "/etc/finetune/hub", "token"
"""HUB_FOLDER/HUB_TOKEN: the token for the hub as a file, from the Secret that the job or the profile names."""
HUB_TOKEN_KEY = "HF_TOKEN"
"""Key of the token in the Secret of spec.hub.tokenSecretName of a FineTuneProfile."""
AUTHORITY_FOLDER = "/etc/finetune/authorities"
"""AUTHORITY_FOLDER/CONFIG_MAP_NAME/KEY: certificates of private authorities, next to STORAGE_FOLDER."""
CLAIM_FOLDER = "/volumes"
"""CLAIM_FOLDER/CLAIM: the volume of a PersistentVolumeClaim that the job uses."""
CACHE_FOLDER = "/model-cache"
"""The volume of spec.modelCache of the profile, in the container that fetches the model."""
SCRATCH_FOLDER = "/scratch"
"""Size-limited writable folder of a trainer pod, for the model and for results before upload."""


def child_prefix(name: str, uid: str) -> str:
    """Return the prefix of the names of all children. The uid makes the names of a recreated job different."""
    return f"{name}-{uid[:8]}"


def preflight_name(name: str, uid: str, number: int = 1) -> str:
    """Return the name of the Job of preflight number `number`, counted from 1. The first one has no number in it."""
    return f"{child_prefix(name, uid)}-preflight{f'-{number}' if number > 1 else ''}"


def preflight_number(job: str) -> int:
    """Return the number of the preflight with the Job `job`."""
    number = job.rpartition("-preflight-")[2]
    return int(number) if number.isdecimal() and number != job else 1


def attempt_name(name: str, uid: str, attempt: int) -> str:
    """Return the name of the Job of attempt number `attempt`, counted from 1."""
    return f"{child_prefix(name, uid)}-a{attempt}"


def nodes_name(name: str, uid: str) -> str:
    """Return the name of the Service through which the training pods of a job on several nodes find each other, and of
    their NetworkPolicy. The name of a Service begins with a letter; that of a job may begin with a digit."""
    return f"nodes-{child_prefix(name, uid)}"


def cleanup_name(name: str, uid: str) -> str:
    """Return the name of the Job that deletes the work folder of a failed job."""
    return f"{child_prefix(name, uid)}-{CLEANUP}"
