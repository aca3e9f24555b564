"""Names both sides of the contract have to agree on."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
JOB_KIND, JOBS = "FineTuneJob", "finetunejobs"
PROFILE_KIND, PROFILES = "FineTuneProfile", "finetuneprofiles"

LABEL_JOB_UID = f"{GROUP}/job-uid"
"""On every child: uid of the FineTuneJob. Narrows the operator's watches."""
LABEL_JOB_NAME = f"{GROUP}/job-name"
"""On every child: name of the FineTuneJob, for people's selectors."""
LABEL_STEP = f"{GROUP}/step"
"""On Jobs and Pods: preflight or train."""
LABEL_ATTEMPT = f"{GROUP}/attempt"
"""On Jobs and Pods of attempts: the number."""
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"

TRAINER_SERVICE_ACCOUNT = "finetune-trainer"
"""ServiceAccount, RoleBinding and ClusterRole of the trainer pods."""

CONTAINER = "trainer"
BUNDLE_KEY = "bundle.json"
BUNDLE_FOLDER = "/etc/finetune/bundle"
STORAGE_FOLDER = "/etc/finetune/storage"
"""STORAGE_FOLDER/SECRET_NAME/{AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY}: credentials as files."""
SCRATCH_FOLDER = "/scratch"
"""Size-limited writable folder of a trainer pod, for the model and what is being written."""


def child_prefix(name: str, uid: str) -> str:
    """What the names of all children of one FineTuneJob start with; the uid keeps a recreated job's apart."""
    return f"{name}-{uid[:8]}"


def preflight_name(name: str, uid: str) -> str:
    """Name of the preflight Job."""
    return f"{child_prefix(name, uid)}-preflight"


def attempt_name(name: str, uid: str, attempt: int) -> str:
    """Name of the Job of attempt number `attempt`, counted from 1."""
    return f"{child_prefix(name, uid)}-a{attempt}"
