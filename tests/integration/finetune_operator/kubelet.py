"""A stand-in for the kubelet, because this level has no node.

It plays pods by writing their status through the API, as a kubelet would: scheduled, running, succeeded, failed with
an exit code and a termination message, killed for memory, evicted, with an image that cannot be pulled. It gives each
pod a token of its own, and with that token the pod says what the trainer would say, through the trainer's own writer,
so that roles and admission policy are the real ones. No container runs: what a real trainer does is for tests/e2e.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from finetune_api import names
from finetune_api.bundle import Bundle, TerminationMessage
from finetune_api.reasons import FAILURES, FailureReason
from finetune_api.status.job import PREFLIGHT_MANAGER, ConditionType, attempt_manager
from finetune_trainer.__main__ import read_bundle
from finetune_trainer.pod.status.status_writer import StatusWriter
from tests.integration import sample_status
from tests.integration.jobs import GPU
from tests.integration.kube import PODS, Kube, Object
from tests.integration.waiting import TIMEOUT_SECONDS, wait_for

NODE = "stand-in"
HEARTBEAT_SECONDS = 10.0
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@contextmanager
def living_node(kubeconfig: Path) -> Iterator[None]:
    """The Node says every ten seconds that it is well. After 50 s of silence the controller-manager would call it
    unreachable, and then delete the pods bound to it."""
    kube, stopped = Kube(kubeconfig), Event()  # a connection of its own, because it is for one thread
    _heartbeat(kube)

    def beat() -> None:
        while not stopped.wait(HEARTBEAT_SECONDS):
            _heartbeat(kube)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _heartbeat(kube: Kube) -> None:
    kube.apply(f"/api/v1/nodes/{NODE}", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": _now()}
    kube.merge(f"/api/v1/nodes/{NODE}/status", {"status": {"conditions": [ready]}})


class Kubelet:
    """One node, within `living_node`. `folder` holds the pods' tokens."""

    def __init__(self, kube: Kube, folder: Path) -> None:
        self.kube = kube
        self.folder = folder
        self.most_gpu_pods = 0
        """Most GPU pods that ran at a time."""
        self._pods: dict[str, PlayedPod] = {}

    def pod_of(self, namespace: str, job: str) -> "PlayedPod":
        """The pod of this batch Job, once the Job controller has made it."""

        def there() -> list[Object]:
            return self.kube.list(PODS.format(namespace), labelSelector=f"batch.kubernetes.io/job-name={job}")

        return self.played(wait_for(f"the pod of Job {job}", there)[0])

    def play(
        self, namespace: str, until: Callable[[], bool], selector: str = "", timeout: float = TIMEOUT_SECONDS
    ) -> None:
        """Pods go on step by step until this holds."""

        def step() -> bool:
            self.advance(namespace, selector)
            return until()

        wait_for("the pods of the job to come to its end", step, timeout=timeout)

    def advance(self, namespace: str, selector: str = "") -> None:
        """Every such pod of the namespace takes its next step towards a happy end; one GPU pod runs at a time."""
        pods = self.kube.list(PODS.format(namespace), labelSelector=selector)
        for pod in pods:
            played = self.played(pod)
            if "deletionTimestamp" in pod["metadata"]:
                played.is_gone()
            elif pod["status"]["phase"] == "Running":
                played.says_all()
                played.succeeds()
            elif pod["status"]["phase"] == "Pending" and not (played.wants_gpu and self._gpu_pods(pods)):
                played.runs()
                pod["status"]["phase"] = "Running"
                self.most_gpu_pods = max(self.most_gpu_pods, self._gpu_pods(pods))

    def _gpu_pods(self, pods: list[Object]) -> int:
        return sum(pod["status"]["phase"] == "Running" and self.played(pod).wants_gpu for pod in pods)

    def played(self, pod: Object) -> "PlayedPod":
        """This pod, as it was read: it need not be there any more."""
        return self._pods.setdefault(pod["metadata"]["uid"], PlayedPod(self.kube, pod, self.folder))


class PlayedPod:
    """One pod, played."""

    def __init__(self, kube: Kube, pod: Object, folder: Path) -> None:
        self.kube, self.pod = kube, pod
        self.name: str = pod["metadata"]["name"]
        self._path = f"{PODS.format(pod['metadata']['namespace'])}/{self.name}"
        self._folder: Path = folder / self.name
        self._started = _now()
        self.exit_code: int | None = None
        self.sidecar = ""
        """Name of a container that a webhook put before the trainer's, and that never ends by itself."""
        self._writer: StatusWriter | None = None
        self._bound = False

    @property
    def wants_gpu(self) -> bool:
        return GPU in self.pod["spec"]["containers"][0]["resources"]["requests"]

    # What happens to it

    def finds_no_node(self, message: str, since: datetime | None = None) -> None:
        """`since`: when the scheduler says that it first found none."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        when = {"lastTransitionTime": f"{since:{_TIME}}"} if since else {}
        self._write(phase="Pending", conditions=[{**condition, **when}])

    def is_bound(self) -> None:
        if not self._bound:
            binding = {"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": NODE}}
            self.kube.create(f"{self._path}/binding", {**binding, "metadata": {"name": self.name}})
            self._bound = True

    def is_bound_since(self, moment: datetime) -> None:
        """The scheduler says that it was bound at this time, which no test could wait for."""
        since = {"status": "True", "lastTransitionTime": f"{moment:{_TIME}}"}
        self._write(conditions=[{"type": "PodScheduled", **since}])

    def scheduled_at(self) -> datetime:
        """When it was bound, as the API server has noted it."""
        conditions = self.kube.get(self._path)["status"]["conditions"]
        (scheduled,) = [condition for condition in conditions if condition["type"] == "PodScheduled"]
        return datetime.fromisoformat(scheduled["lastTransitionTime"])

    def cannot_start(self, reason: str, message: str) -> None:
        """Its container waits: ImagePullBackOff, CreateContainerConfigError and the like."""
        self.is_bound()
        self._write(phase="Pending", state={"waiting": {"reason": reason, "message": message}})

    def runs(self, since: datetime | None = None) -> None:
        """`since`: when its kubelet says that the container has started; now by default."""
        self.is_bound()
        self._started = f"{since:{_TIME}}" if since else _now()
        self._write(phase="Running", state={"running": {"startedAt": self._started}})

    def succeeds(self) -> None:
        self._ends("Succeeded", 0, "Completed", TerminationMessage(reason="Succeeded", message="Done."))

    def fails(self, reason: FailureReason, message: str) -> None:
        """The trainer ends with its typed exit code and says why."""
        self._ends("Failed", FAILURES[reason].exit_code, "Error", TerminationMessage(reason=reason, message=message))

    def crashes(self, exit_code: int, last_log_lines: str = "", why: str = "Error") -> None:
        """The container ends without a word of the trainer's: the kubelet leaves the end of the log."""
        self._ends("Failed", exit_code, why, last_log_lines)

    def is_evicted(self, message: str) -> None:
        """The node is short of memory or disk and the kubelet ends the pod."""
        target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message}
        self._write(phase="Failed", reason="Evicted", message=message, conditions=[target])

    def is_refused(self, reason: str, message: str) -> None:
        """The kubelet does not admit the pod. It replaces its status, so that the pod has no containers and no
        conditions."""
        self.is_bound()
        self._write(phase="Failed", reason=reason, message=message, conditions=[], containerStatuses=[])

    def is_disrupted(self, reason: str) -> None:
        """Somebody else ends it, for a reason of the condition DisruptionTarget."""
        target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": ""}
        self._write(phase="Failed", conditions=[target])

    def validates(self) -> None:
        """A preflight from start to its good end."""
        self.runs()
        self.says_the_data_is_good()
        self.succeeds()

    def is_gone(self) -> None:
        """It was deleted: the kubelet asks its container to stop, says that it has ended, and removes it."""
        self.kube.delete(self._path)
        pod = self.kube.find(self._path)
        if pod is not None and pod["spec"].get("nodeName") and pod["status"]["phase"] in ("Pending", "Running"):
            self.sidecar = ""
            self._ends("Failed", 143, "Error", "")
            self.exit_code = None  # it may be gone before anybody has seen it
        self.kube.delete(self._path, gracePeriodSeconds=0)

    # What the trainer in it says

    def says_all(self) -> None:
        """What the trainer says from its start to a happy end."""
        self.says_it_trained() if self.wants_gpu else self.says_the_data_is_good()
        if self.wants_gpu:
            self.says_it_evaluated()
            self.says_it_published()

    def says_the_data_is_good(self) -> None:
        self.writer.condition(ConditionType.VALIDATED, True, "Valid", "240 rows are good.")
        self.writer.result(preflight=sample_status.PREFLIGHT, resolved=sample_status.RESOLVED)

    def says_the_data_is_bad(self, reason: FailureReason, message: str) -> None:
        self.writer.condition(ConditionType.VALIDATED, False, reason, message)
        self.writer.result(preflight=sample_status.PREFLIGHT)

    def says_it_failed(self, reason: FailureReason, message: str) -> None:
        """What an attempt writes in the status before it ends."""
        self.writer.condition(ConditionType.TRAINED, False, reason, f"{message} {FAILURES[reason].remedy}")
        self.writer.result()

    def says_it_kept(self, results: int) -> None:
        """What an attempt writes in the status when it has stored a result for later attempts."""
        number = int(self.pod["metadata"]["labels"][names.LABEL_ATTEMPT])
        update = {"attempt": number, "step": 0, "kept_results": results}
        self.writer.result(training=sample_status.TRAINING.model_copy(update=update))

    def says_it_trained(self) -> None:
        self.writer.condition(ConditionType.TRAINED, True, "Trained", "24 of 24 steps are done.")
        self.writer.result(training=sample_status.TRAINING)

    def says_it_evaluated(self) -> None:
        self.writer.condition(ConditionType.EVALUATED, True, "Evaluated", sample_status.VERDICT)
        self.writer.result(evaluation=sample_status.EVALUATION)

    def says_it_published(self) -> None:
        self.writer.result(artifacts=sample_status.ARTIFACTS)

    @property
    def writer(self) -> StatusWriter:
        """The trainer's own, with this pod's token."""
        if self._writer is None:
            attempt = self.pod["metadata"]["labels"].get(names.LABEL_ATTEMPT)
            manager = attempt_manager(int(attempt)) if attempt else PREFLIGHT_MANAGER
            self._writer = StatusWriter(self._bundle().job, manager, self._mount_token(), self.kube.server)
        return self._writer

    def _bundle(self) -> Bundle:
        """What the pod finds mounted, read as the trainer reads it: with the digest of its environment."""
        (name,) = [each["configMap"]["name"] for each in self.pod["spec"]["volumes"] if each["name"] == "bundle"]
        config_map = self.kube.get(f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/configmaps/{name}")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / names.BUNDLE_KEY).write_text(config_map["data"][names.BUNDLE_KEY])
        (container,) = [each for each in self.pod["spec"]["containers"] if each["name"] == names.CONTAINER]
        environment = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        assert environment[names.BUNDLE_DIGEST_VARIABLE]
        return read_bundle(self._folder / names.BUNDLE_KEY, environment)

    def _mount_token(self) -> Path:
        """As the projected volume of a pod: a token that only this pod holds, and the cluster's authority."""
        account = self.pod["spec"]["serviceAccountName"]
        reference = {"kind": "Pod", "apiVersion": "v1", "name": self.name, "uid": self.pod["metadata"]["uid"]}
        namespace = self.pod["metadata"]["namespace"]
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.kube.create(path, {"spec": {"audiences": [], "boundObjectRef": reference}})
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "token").write_text(answer["status"]["token"])
        if not (self._folder / "ca.crt").exists():
            (self._folder / "ca.crt").symlink_to(self.kube.authority)
        return self._folder

    def _ends(self, phase: str, exit_code: int, why: str, message: TerminationMessage | str) -> None:
        self.exit_code = exit_code
        text = message if isinstance(message, str) else message.model_dump_json(by_alias=True, exclude_none=True)
        ended = {"exitCode": exit_code, "reason": why, "message": text}
        self._write(
            phase="Running" if self.sidecar else phase,
            state={"terminated": {**ended, "startedAt": self._started, "finishedAt": _now()}},
        )

    def _write(self, state: Object | None = None, **status: Any) -> None:
        if state is not None:
            container = {"name": names.CONTAINER, "image": "trainer", "imageID": "", "restartCount": 0}
            started = "running" in state
            own = {**container, "state": state, "ready": started, "started": started}
            running = {"state": {"running": {"startedAt": self._started}}, "ready": True, "started": True}
            beside = [{**container, **running, "name": self.sidecar}] if self.sidecar else []
            status["containerStatuses"] = [*beside, own]
        self.kube.merge(f"{self._path}/status", {"status": status})


def _now() -> str:
    return datetime.now(UTC).strftime(_TIME)
