"""The pods of a job, as the machine sees them: their processes, logs and volumes."""

from pathlib import Path

from finetune_api import names
from tests.chaos.harms import stand_in
from tests.chaos.scene import Scene
from tests.integration.jobs import Job
from tests.integration.kube import Object
from tests.integration.pod_processes import processes_of
from tests.integration.waiting import wait_for


def pod_at_work(job: Job, step: str | None = None) -> Object | None:
    """Returns the pod of the job that runs now and is not being deleted. `step`: only a pod of this one. The API server
    takes a pod on a lost node to run on, also if its work is done."""
    pods = [pod for pod in job.pods() if pod["status"].get("phase") == "Running"]
    pods = [pod for pod in pods if step in (None, pod["metadata"]["labels"][names.LABEL_STEP])]
    return next((pod for pod in pods if "deletionTimestamp" not in pod["metadata"]), None)


def process_of(pod: Object, container: str = names.CONTAINER) -> int | None:
    """Returns the machine's id of the container's first process; None if it does not run."""
    own = set(processes_of(pod, container))
    return next((pid for pid in own if _parent_of(pid) not in {*own, None}), None)


def _parent_of(pid: int) -> int | None:
    """Returns the id of the parent; None if the process has ended."""
    try:
        # The name of the program, in parentheses, may have any character.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def log_of(scene: Scene, pod: Object) -> str:
    """Returns the trainer's log so far, as the node keeps it."""
    metadata = pod["metadata"]
    folder = f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
    place = folder_of(scene, pod) / "pod-logs" / folder / names.CONTAINER / "0.log"
    return place.read_text(errors="replace") if place.exists() else ""


def volume_of(scene: Scene, pod: Object, volume: str) -> Path:
    """Returns the folder of an emptyDir of the pod on the node's disk."""
    place = f"kubelet/pods/{pod['metadata']['uid']}/volumes/kubernetes.io~empty-dir/{volume}"
    return folder_of(scene, pod) / place


def journal_of(scene: Scene, pod: Object) -> Path:
    """Returns the file in which the stand-in writes the steps of the pod."""
    return volume_of(scene, pod, "tmp") / stand_in.JOURNAL


def secrets_of(scene: Scene, pod: Object) -> list[Path]:
    """Returns the folders of the pod's Secrets on the node's disk."""
    place = folder_of(scene, pod) / f"kubelet/pods/{pod['metadata']['uid']}/volumes/kubernetes.io~secret"
    return sorted(place.glob("storage-*"))


def running(job: Job) -> tuple[Object, int]:
    """Returns the pod at work and its process. Raises AssertionError if none starts."""

    def found() -> tuple[Object, int] | None:
        pod = pod_at_work(job)
        pid = process_of(pod) if pod else None
        return (pod, pid) if pod and pid else None

    result = wait_for(f"a trainer of {job.name} to run", found, timeout=30)
    assert result is not None
    return result


def folder_of(scene: Scene, pod: Object) -> Path:
    """Returns the folder of the pod's node: of its kubelet and of its logs."""
    return scene.nodes[pod["spec"]["nodeName"]].folder
