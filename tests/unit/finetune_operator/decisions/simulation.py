"""A cluster without a clock: one job, its child Jobs and pods, and an operator that decides after each change.

It does what the API server, the Job controller and the kubelet do with these objects, and no more."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_api.reasons import SUPERSEDED_EXIT_CODE
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import FineTuneJobStatus
from finetune_operator.decisions.cleanups import end_of
from finetune_operator.decisions.objects import bundles
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts import node_clocks
from finetune_operator.observed.facts.lost import lost_at
from finetune_operator.observed.facts.pods import Object, Pod, PodCondition
from finetune_operator.observed.world import EarlierJob, Progress, World
from finetune_operator.store.kept import KeptJob
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, UID, fresh

OTHER_SECRETS = PROFILE.model_copy(
    update={"storages": [s.model_copy(update={"credentials_secret_name": "rotated"}) for s in PROFILE.storages]}
)
EARLIER = EarlierJob("earlier-uid", "s3://results/earlier", "Failed")
GRACE = timedelta(seconds=120)
ARTIFACTS = {"adapter": "s3://r/a", "report": "s3://r/r", "manifest": "s3://r/m", "digest": "0"}
OTHER_GPUS = PROFILE.model_copy(
    update={
        "gpu_types": [
            GpuType(name="l4", price_per_hour="0.80"),
            PROFILE.gpu_types[0].model_copy(update={"price_per_hour": "2.50", "node_selector": None}),
        ]
    }
)
"""A profile in which another type is cheaper, and the nodes of the first one have no label."""
ROUNDS = 40
"""Number of decisions after which the operator must have come to rest."""


@dataclass
class Job:
    """A child Job."""

    name: str
    step: str
    number: int
    created: datetime
    pods: list[Pod] = field(default_factory=list)
    suspended: bool = False
    failed: bool = False
    succeeded: bool = False
    gpu_type: str | None = None
    begun: datetime | None = None
    ended_since: datetime | None = None
    stopped_since: datetime | None = None
    retries: int = 0
    """How often Kubernetes repeats a pod that failed."""

    @property
    def is_over(self) -> bool:
        return self.failed or self.succeeded


@dataclass
class Cluster:
    """One FineTuneJob and everything that belongs to it."""

    now: datetime = NOW
    spec: FineTuneJobSpec = SPEC
    generation: int = 1
    profile: FineTuneProfileSpec = PROFILE
    bundle: Bundle | None = None
    earlier_job: EarlierJob | None = None
    cleanup_has_turn: bool = True
    """False: other cleanups run, or another job starts from the checkpoints of this one."""
    deleting: bool = False
    operator_is_up: bool = True
    refusals: list[int] = field(default_factory=list)
    """For each of the next plans: how many of its actions succeed before the API server is away."""
    status: Object = field(default_factory=lambda: {"observedGeneration": -1})
    said: dict[str, Object] = field(default_factory=dict)
    """Conditions that pods wrote, by type."""
    authors: dict[str, int] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    parts: Object = field(default_factory=dict)
    """Other parts of the status that pods wrote."""
    jobs: dict[str, Job] = field(default_factory=dict)
    remains: dict[int, list[Pod]] = field(default_factory=dict)
    watch_is_late: bool = False
    """Whether the watch of pods does not show new pods of attempts."""
    unseen: set[str] = field(default_factory=set)
    """Names of the pods that exist and that the watch has not shown."""
    deleted_unrecorded: bool = False
    """Whether the operator has deleted a live attempt before its end was on record."""
    requested_gpu_while_invalid: bool = False
    mounted_other_secrets: bool = False
    """Whether a pod was to mount other Secrets than those that its bundle needs."""
    gpu_types: set[str] = field(default_factory=set)
    """Names of the GPU types that attempts have requested."""
    created: list[tuple[str, int]] = field(default_factory=list)
    """Step and number of each Job that was created."""
    statuses: list[Object] = field(default_factory=list)
    """Everything that the operator wrote."""
    skews: dict[str, timedelta] = field(default_factory=dict)
    """How far the clock of each node is ahead; negative if it is behind."""
    ends: dict[str, datetime] = field(default_factory=dict)
    """When the trainer of each pod ended, by name, if the pod was not lost and the job had not ended."""
    _pods: int = 0

    # What the operator sees and does

    def world(self) -> World:
        conditions = [*self.status.get("conditions", []), *self.said.values()]
        raw = {**self.status, **self.parts, "conditions": conditions}
        preflights = {job.number: self.run_of(job) for job in self.jobs.values() if job.step == "preflight"}
        number = max(preflights, default=1)
        world = fresh(
            created=NOW,
            spec=self.spec,
            generation=self.generation,
            profile=self.profile,
            bundle=self.bundle,
            earlier_job=self.earlier_job,
            deleting=self.deleting,
            raw_status=raw,
            status=FineTuneJobStatus.model_validate(raw),
            service_account_exists=True,
            role_binding_exists=True,
            preflight=preflights.get(number),
            preflight_number=number,
            attempts={job.number: self.run_of(job) for job in self.jobs.values() if job.step == "train"},
            remains={number: seen for number, pods in self.remains.items() if (seen := tuple(self._seen(pods)))},
            authors=dict(self.authors),
            progress=self.progress,
        )
        return ended(self, world) if self.is_over else world

    def run_of(self, job: Job) -> Run:
        run = Run(
            name=job.name,
            created=job.created,
            succeeded=job.succeeded,
            failed=job.failed,
            suspended=job.suspended,
            queue="gpus",
            gpu_type=job.gpu_type,
            begun=job.begun,
            pods_end_by=job.ended_since or (job.stopped_since + GRACE if job.suspended and job.stopped_since else None),
        )
        return run.with_pods(self._seen(job.pods))

    def _seen(self, pods: list[Pod]) -> list[Pod]:
        return [pod for pod in pods if pod.name not in self.unseen]

    def catch_up(self) -> None:
        """The watch shows all pods, or the operator has read them live."""
        self.unseen.clear()

    def _read_live(self) -> None:
        """Read the pods if the running attempt has failed or is gone, and no pod shows why. As `cluster.observe`."""
        running = [record["name"] for record in self.status.get("attempts", [])[-1:] if "reason" not in record]
        for job in [self.jobs.get(name) for name in running]:
            if job is None or (job.failed and not any(pod.trainer_ended for pod in self._seen(job.pods))):
                self.catch_up()

    def settle(self) -> timedelta | None:
        """Let the operator decide until nothing is left to do at this time. Return when it wants to look again."""
        for _ in range(ROUNDS):
            self._control_jobs()
            if not self.operator_is_up:
                return None
            self._read_live()
            plan = reconcile(self.world(), self.now)
            whole = self._apply(plan)
            if whole and not plan.create and not plan.delete_jobs and plan.requeue_after != timedelta(0):
                return plan.requeue_after
        raise AssertionError(f"the operator does not come to rest: {plan}")

    def _apply(self, plan: Plan) -> bool:
        """Carry the plan out, or only its first actions. Return whether it was carried out as a whole."""
        status = [plan.status] if plan.status is not None else []
        deleted = [*plan.delete_config_maps, *plan.delete_jobs]
        last = [*deleted, *status] if plan.is_final else [*status, *deleted]
        actions: list[Any] = [*plan.create, *last]
        if any(names.LABEL_ATTEMPT in body["metadata"].get("labels", {}) for body in plan.create):
            unseen = [pod for pods in self.remains.values() for pod in pods if pod.name in self.unseen]
            self.catch_up()
            if unseen:
                return False
        allowed = self.refusals.pop(0) if self.refusals else len(actions)
        for action in actions[:allowed]:
            if action == names.child_prefix("tickets", UID):
                self.bundle = None
            elif isinstance(action, str):
                self.deleted_unrecorded |= self._is_running_on_record(action)
                self.delete_job(action)
            elif "kind" in action:
                self._create(action)
            else:
                self.status = action
                self.statuses.append(action)
        return allowed >= len(actions)

    def _is_running_on_record(self, name: str) -> bool:
        """Whether this is a live Job of an attempt, and neither its end nor the results of the job are on record."""
        job = self.jobs.get(name)
        if job is None or job.is_over or job.step != "train" or "artifacts" in self.parts:
            return False
        return all(record["name"] != name or "reason" not in record for record in self.status.get("attempts", []))

    def _create(self, body: Object) -> None:
        name = body["metadata"]["name"]
        if body["kind"] == "ConfigMap":
            self.bundle = self.bundle or Bundle.model_validate_json(body["data"][names.BUNDLE_KEY])
        if body["kind"] != "Job" or name in self.jobs:
            return
        labels = body["metadata"]["labels"]
        step = labels[names.LABEL_STEP]
        number = int(labels.get(names.LABEL_ATTEMPT, 0)) or (names.preflight_number(name) if step == "preflight" else 0)
        volumes = body["spec"]["template"]["spec"]["volumes"]
        mounted = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
        self.mounted_other_secrets |= self.bundle is None or mounted != bundles.secrets(self.bundle)
        is_valid = self.said.get("Validated", {}).get("status") == "True"
        finished = any(job.succeeded for job in self.jobs.values() if job.step == "preflight")
        self.requested_gpu_while_invalid |= step == "train" and not (is_valid or finished)
        retries = body["spec"]["backoffLimit"]
        gpu_type = labels.get(names.LABEL_GPU_TYPE)
        self.jobs[name] = Job(name, step, number, self.now, gpu_type=gpu_type, begun=self.now, retries=retries)
        self.gpu_types |= {gpu_type} if gpu_type else set()
        self.created.append((step, number))

    # What the controllers of Kubernetes do

    def _control_jobs(self) -> None:
        """Create the pod of each Job that wants one, and end Jobs whose pods have ended."""
        for job in self.jobs.values():
            if job.failed or job.succeeded:
                continue
            counted = [
                pod
                for pod in job.pods
                if not (job.suspended or (pod.is_leaving and job.begun and pod.created < job.begun))
            ]
            job.succeeded = any(pod.phase == "Succeeded" for pod in counted)
            failures = sum(pod.phase == "Failed" for pod in counted)
            job.failed = failures > job.retries and not job.succeeded
            job.ended_since = self.now if job.is_over else None
            if job.suspended or job.failed or job.succeeded:
                continue
            if all(pod.is_over for pod in job.pods):
                job.pods.append(self._new_pod(job))

    def _new_pod(self, job: Job) -> Pod:
        self._pods += 1
        if self.watch_is_late and job.step == "train":
            self.unseen.add(f"{job.name}-{self._pods}")
        # Kubernetes pauses before it repeats a pod, so two of them are never created in the same second.
        created = self.now + timedelta(seconds=len(job.pods) if job.retries else 0)
        return Pod(name=f"{job.name}-{self._pods}", created=created, phase="Pending", uid=str(self._pods))

    # What happens to Jobs and pods

    def job_of(self, pod: Pod) -> Job | None:
        return next((job for job in self.jobs.values() if pod in job.pods), None)

    def number_of(self, pod: Pod) -> int:
        """Return the number of the attempt that the pod belongs to; 0 for the preflight."""
        job = self.job_of(pod)
        if job is not None:
            return job.number if job.step == "train" else 0
        return next(number for number, pods in self.remains.items() if pod in pods)

    def pods(self) -> list[Pod]:
        """Return all pods whose trainer has not ended."""
        of_jobs = [pod for job in self.jobs.values() for pod in job.pods]
        left = [pod for pods in self.remains.values() for pod in pods]
        return [pod for pod in (*of_jobs, *left) if not pod.is_over]

    def change(self, pod: Pod, **fields: Any) -> Pod:
        changed = replace(pod, **fields)
        for pods in (*(job.pods for job in self.jobs.values()), *self.remains.values()):
            if pod in pods:
                pods[pods.index(pod)] = changed
        return changed

    def start(self, pod: Pod, node: str) -> Pod:
        placed = {"PodScheduled": PodCondition("True", "", "", self.now)}
        skew = self.skews.get(node, timedelta(0))
        behind = node_clocks.behind(self.now, self.now + skew)
        return self.change(
            pod, phase="Running", node_name=node, conditions=placed, started=self.now + skew, behind=behind
        )

    def end(self, pod: Pod, exit_code: int, **fields: Any) -> None:
        """All containers of the pod end."""
        ended = self.change(self.end_trainer(pod, exit_code), **fields)
        ended = self.change(ended, phase="Failed" if ended.exit_code else "Succeeded")
        if ended.is_leaving:
            self.vanish(ended)

    def end_trainer(self, pod: Pod, exit_code: int, **fields: Any) -> Pod:
        """The trainer of the pod ends, if it has not ended yet."""
        if pod.exit_code is not None:
            return pod
        if not self.is_lost(pod) and not self.is_over:
            self.ends[pod.name] = self.now
        finished = None
        if pod.started:
            finished = self.now + self.skews.get(pod.node_name or "", timedelta(0))
            finished += node_clocks.correction(pod.behind, finished, self.now)
        return self.change(pod, exit_code=exit_code, finished=finished, **fields)

    def ask_to_stop(self, pod: Pod) -> None:
        if not pod.is_leaving:
            self.change(pod, due=self.now + GRACE, grace=GRACE)

    def vanish(self, pod: Pod) -> None:
        job = self.job_of(pod)
        for pods in (*(job.pods for job in self.jobs.values()), *self.remains.values()):
            if pod in pods:
                pods.remove(pod)
        if job is not None and not job.suspended and not job.succeeded and pod.phase != "Succeeded":
            job.failed = job.retries == 0
            job.ended_since = self.now if job.failed else None

    def delete_job(self, name: str, cascades: bool = True) -> None:
        """`cascades`: its pods are deleted too."""
        job = self.jobs.pop(name, None)
        if job is None:
            return
        if job.step == "train":
            self.remains.setdefault(job.number, []).extend(job.pods)
            for pod in job.pods if cascades else ():
                if not pod.is_over and pod.started:
                    self.ask_to_stop(pod)
                else:
                    self.vanish(pod)

    def suspend(self, job: Job) -> None:
        job.suspended, job.stopped_since = True, self.now
        for pod in list(job.pods):
            if pod.started and not pod.is_over:
                self.ask_to_stop(pod)
            else:
                self.vanish(pod)

    def resume(self, job: Job) -> None:
        job.suspended, job.begun = False, self.now

    # What pods write

    def says(self, pod: Pod, type: str, truth: str, reason: str, skew: timedelta) -> None:
        """A pod writes a condition, with the time of its own clock."""
        number = self.number_of(pod)
        if self.is_over or (number and number < max(self.authors.values(), default=0)):
            return  # the writer stops: the job has ended, or a later attempt has forced its own words
        self.said[type] = {
            "type": type,
            "status": truth,
            "reason": reason,
            "message": "It says so.",
            "lastTransitionTime": (self.now + skew).isoformat(),
        }
        if number:
            self.authors[type] = number

    @property
    def is_over(self) -> bool:
        """Whether the FineTuneJob has ended."""
        return self.status.get("state") in ("Complete", "Failed")

    def is_lost(self, pod: Pod) -> bool:
        """Whether the pod is on a node that never answers again."""
        at = lost_at(pod)
        return at is not None and self.now >= at


def ended(cluster: Cluster, world: World) -> World:
    """Return the world of a job that has ended, as `cluster.ended` reads it: the spec only if it is needed."""
    kept = KeptJob.parse(
        {
            "metadata": {
                "namespace": world.namespace,
                "name": world.name,
                "uid": world.uid,
                "resourceVersion": "1",
                "generation": world.generation,
                "creationTimestamp": world.created.isoformat(),
            },
            "spec": cluster.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            "status": world.raw_status,
        }
    )
    cleanup = next((job for job in cluster.jobs.values() if job.step == names.CLEANUP), None)
    due = kept.keep is not None and kept.ended_at is not None and cluster.now >= kept.ended_at + kept.keep
    has_turn = due and cleanup is None and cluster.cleanup_has_turn
    is_read = has_turn or (cleanup is not None and end_of(cluster.run_of(cleanup), cluster.now) is not None)
    others = [pod for job in cluster.jobs.values() if job is not cleanup for pod in job.pods]
    return replace(
        world,
        spec=world.spec if is_read else None,
        profile=world.profile if is_read else None,
        preflight=None,
        attempts={},
        remains={},
        ended_at=kept.ended_at,
        ttl=kept.ttl,
        keep=kept.keep,
        children=tuple(cluster.jobs),
        had_several_nodes=kept.has_several_nodes,
        cleanup=cluster.run_of(cleanup) if cleanup else None,
        trainers=(*others, *(pod for pods in cluster.remains.values() for pod in pods)),
        cleanup_has_turn=has_turn,
    )


EXIT_CODES = [1, 20, 21, 26, 28, 29, 30, 31, 32, 33, 34, 35, 37, SUPERSEDED_EXIT_CODE, 135, 137, 139, 143]
assert UID
