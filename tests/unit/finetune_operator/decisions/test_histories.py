"""What holds in every history of a job, whatever happens to its pods, its Jobs, its spec and the operator.

`make histories` runs 20,000 of them; the unit tests run a few hundred."""

import json
import os
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from finetune_api import names
from finetune_api.reasons import AGAIN, FAILURES, FailureReason, Retry
from finetune_api.spec.job import ResumeFrom
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.spec.run_policy import Budget, RunPolicy
from finetune_api.status.attempts import Attempt
from finetune_operator.decisions.attempts.progress import got_further, is_in_vain
from finetune_operator.decisions.cleanups import end_of
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import Companion, NodeState, Object, Pod, PodCondition
from finetune_operator.observed.world import EarlierJob, Progress
from tests.unit.finetune_operator.decisions.simulation import (
    ARTIFACTS,
    EARLIER,
    EXIT_CODES,
    OTHER_GPUS,
    OTHER_SECRETS,
    Cluster,
    Job,
)
from tests.unit.finetune_operator.worlds import PROFILE

HISTORIES = int(os.environ.get("HISTORIES", "200"))
INTERRUPTIONS = {str(reason) for reason in FailureReason if FAILURES[reason].retry is Retry.INTERRUPTION}
CHARGED = {str(r) for r in FailureReason if FAILURES[r].retry in (Retry.ONCE, Retry.BACKOFF, Retry.OTHER_NODE)}
SKEWS = st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(hours=-1)])
POLICIES = st.builds(
    RunPolicy,
    max_retries=st.sampled_from([None, 0, 1, 9, 10, 12, 20]),
    max_interruptions=st.sampled_from([None, 0, 2]),
    active_deadline_seconds=st.sampled_from([None, None, 60, 3600]),
    budget=st.sampled_from([None, None, Budget(gpu_hours=0.01), Budget(gpu_hours=1)]),
    keep_checkpoints_seconds=st.sampled_from([None, 0, 60, 3600]),
    ttl_seconds_after_finished=st.sampled_from([None, None, 0, 700]),
)
WEEK = timedelta(days=7)


class Histories(RuleBasedStateMachine):
    """One history: things happen, and after each the operator decides until nothing is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.written = 0
        self.reasons: dict[tuple[str, int], str] = {}
        """Reason of each recorded end, by the list and the number."""
        self.end: Object | None = None
        self.attempts: dict[int, Object] = {}
        """Last version of the record of each attempt, also of those that the status lists no more."""
        self.was_hindered = False
        """Whether the operator was away, or one of its writes has failed."""

    @initialize(
        is_valid=st.sampled_from([True, True, False]),
        trains=st.booleans(),
        resumes=st.booleans(),
        skews=st.tuples(SKEWS, SKEWS),
    )
    def it_begins(self, is_valid: bool, trains: bool, resumes: bool, skews: tuple[timedelta, timedelta]) -> None:
        """Most histories begin where a GPU is requested, because most happens from there on."""
        self.cluster.skews = dict(zip(("n1", "n2"), skews, strict=True))
        if resumes:
            self.cluster.spec = self.cluster.spec.model_copy(update={"resume_from": ResumeFrom(name="first")})
            self.cluster.earlier_job = EARLIER
        self.cluster.settle()
        if is_valid:
            self._go_on()
            self._go_on()
            self.cluster.settle()
            if trains:
                self.cluster.start(self.cluster.pods()[0], "n1")

    # What happens

    @precondition(lambda self: any(pod.phase == "Pending" for pod in self.cluster.pods()))
    @rule(data=st.data(), node=st.sampled_from(["n1", "n2"]))
    def a_pod_starts(self, data: st.DataObject, node: str) -> None:
        if pod := self._draw(data, [p for p in self.cluster.pods() if p.phase == "Pending"]):
            self.cluster.start(pod, node)

    @precondition(lambda self: self._of("preflight"))
    @rule(data=st.data())
    def a_preflight_ends_well(self, data: st.DataObject) -> None:
        if pod := self._draw(data, self._of("preflight")):
            self.cluster.says(pod, "Validated", "True", "Valid", timedelta(0))
            self.cluster.end(pod, 0)

    @precondition(lambda self: self._attempts())
    @rule(data=st.data(), steps=st.integers(0, 5), skew=SKEWS)
    def an_attempt_gets_on(self, data: st.DataObject, steps: int, skew: timedelta) -> None:
        if pod := self._draw(data, self._attempts()):
            number = self.cluster.number_of(pod)
            before = self.cluster.progress
            step = (before.checkpoint_step or 0) + steps
            self.cluster.progress = Progress(number, step, before.checkpoint_step, step)
            if steps > 3:
                self.cluster.says(pod, "Trained", "True", "Trained", skew)
            if steps > 4:  # it will publish, unless something ends it before
                self.cluster.says(pod, "Evaluated", "False", "EvaluationGateFailed", skew)

    @precondition(lambda self: self._attempts())
    @rule(data=st.data(), skew=SKEWS, exits=st.booleans())
    def an_attempt_publishes(self, data: st.DataObject, skew: timedelta, exits: bool) -> None:
        if pod := self._draw(data, self._attempts()):
            self.cluster.says(pod, "Trained", "True", "Trained", skew)
            self.cluster.says(pod, "Evaluated", "True", "Evaluated", skew)
            if not self.cluster.is_over:
                self.cluster.parts["artifacts"] = ARTIFACTS
            if exits:
                self.cluster.end(pod, 0)

    @precondition(lambda self: self._running())
    @rule(data=st.data(), code=st.sampled_from(EXIT_CODES), speaks=st.booleans(), skew=SKEWS)
    def a_pod_fails(self, data: st.DataObject, code: int, speaks: bool, skew: timedelta) -> None:
        if pod := self._draw(data, self._running()):
            said = next((r for r, failure in FAILURES.items() if failure.exit_code == code), None)
            type = "Trained" if self.cluster.number_of(pod) else "Validated"
            if said is not None and speaks:
                self.cluster.says(pod, type, "False", said, skew)
            self.cluster.end(pod, code, termination_reason="OOMKilled" if code == 137 and speaks else "Error")

    @precondition(lambda self: self._running())
    @rule(data=st.data(), code=st.sampled_from([0, 1, 26, 32]))
    def a_trainer_ends_beside_a_sidecar(self, data: st.DataObject, code: int) -> None:
        """The sidecar runs until the pod is deleted."""
        if pod := self._draw(data, self._running()):
            if code == 0 and self.cluster.number_of(pod) and not self.cluster.is_over:
                self.cluster.parts["artifacts"] = ARTIFACTS
            if code == 0 and pod in self._of("preflight"):
                self.cluster.says(pod, "Validated", "True", "Valid", timedelta(0))
            self.cluster.end_trainer(pod, code, companions=(Companion("proxy", is_running=True),))

    @precondition(lambda self: self._running())
    @rule(data=st.data(), why=st.sampled_from(["PreemptionByScheduler", "TerminationByKubelet", "DeletionByPodGC"]))
    def a_pod_is_disrupted(self, data: st.DataObject, why: str) -> None:
        if pod := self._draw(data, self._running()):
            disruption = PodCondition("True", why, "", self.cluster.now)
            self.cluster.end(pod, 143, conditions={**pod.conditions, "DisruptionTarget": disruption})

    @precondition(lambda self: self._attempts())
    @rule(
        number=st.sampled_from([1, 2, 13]),
        checkpoint=st.integers(0, 9) | st.none(),
        starts=st.sampled_from([True, True, False]),
    )
    def attempts_are_interrupted_again_and_again(self, number: int, checkpoint: int | None, starts: bool) -> None:
        """Each takes a step and is preempted, or is refused by its node. `checkpoint`: the last one of all of them."""
        for _ in range(number):
            pods = [pod for job in self.cluster.jobs.values() if job.step == "train" for pod in job.pods]
            for pod in [pod for pod in pods if not pod.trainer_ended and not pod.is_leaving]:
                if starts or pod.started:
                    pod = pod if pod.started else self.cluster.start(pod, "n1")
                    attempt = self.cluster.number_of(pod)
                    self.cluster.progress = Progress(attempt, step=99, checkpoint_step=checkpoint)
                    disruption = PodCondition("True", "PreemptionByScheduler", "", self.cluster.now)
                    self.cluster.end(pod, 143, conditions={**pod.conditions, "DisruptionTarget": disruption})
                else:
                    refusal = {"reason": "UnexpectedAdmissionError", "message": "Allocate failed"}
                    self.cluster.change(pod, phase="Failed", node_name="n1", conditions={}, **refusal)
            self.everything_holds()
            self.cluster.now += timedelta(minutes=10)
            self.everything_holds()

    @precondition(lambda self: self.cluster.pods())
    @rule(data=st.data(), gone=st.booleans())
    def a_pod_is_deleted(self, data: st.DataObject, gone: bool) -> None:
        """Its node stops it, or never answers again."""
        if pod := self._draw(data, self.cluster.pods()):
            self.cluster.vanish(pod) if gone or not pod.started else self.cluster.ask_to_stop(pod)

    @precondition(lambda self: any(pod.is_leaving for pod in self.cluster.pods()))
    @rule(data=st.data(), state=st.sampled_from(NodeState))
    def the_node_of_a_stopping_pod_is_read(self, data: st.DataObject, state: NodeState) -> None:
        if pod := self._draw(data, [p for p in self.cluster.pods() if p.is_leaving and not self.cluster.is_lost(p)]):
            self.cluster.change(pod, node_state=state)

    @precondition(lambda self: any(pod.is_leaving for pod in self.cluster.pods()))
    @rule(data=st.data(), clean=st.booleans())
    def a_stopping_pod_ends(self, data: st.DataObject, clean: bool) -> None:
        if pod := self._draw(data, [p for p in self.cluster.pods() if p.is_leaving]):
            self.cluster.end(pod, 33 if clean else 137)

    @precondition(lambda self: self.cluster.jobs)
    @rule(data=st.data(), cascades=st.sampled_from([True, True, False]))
    def a_job_is_deleted(self, data: st.DataObject, cascades: bool) -> None:
        if job := self._draw(data, list(self.cluster.jobs.values())):
            self.cluster.delete_job(job.name, cascades)

    @rule(data=st.data())
    def a_queue_holds_a_job_back_or_lets_it_go(self, data: st.DataObject) -> None:
        live = [j for j in self.cluster.jobs.values() if j.step == "train" and not (j.failed or j.succeeded)]
        if job := self._draw(data, live):
            self.cluster.resume(job) if job.suspended else self.cluster.suspend(job)

    @precondition(lambda self: self._of(names.CLEANUP))
    @rule(data=st.data(), well=st.booleans())
    def a_cleanup_ends(self, data: st.DataObject, well: bool) -> None:
        if pod := self._draw(data, self._of(names.CLEANUP)):
            self.cluster.end(pod, 0 if well else 26)

    @rule(may=st.booleans())
    def another_job_needs_the_checkpoints_or_no_longer(self, may: bool) -> None:
        self.cluster.cleanup_has_turn = may

    @precondition(lambda self: self.cluster.spec.resume_from)
    @rule(
        earlier=st.sampled_from(
            [None, EARLIER, replace(EARLIER, state="Complete"), replace(EARLIER, is_cleaned=True)],
        )
    )
    def the_earlier_job_changes(self, earlier: EarlierJob | None) -> None:
        self.cluster.earlier_job = earlier

    @rule(late=st.booleans())
    def the_watch_of_pods_is_late_or_catches_up(self, late: bool) -> None:
        self.cluster.watch_is_late = late
        if not late:
            self.cluster.catch_up()

    @rule(profile=st.sampled_from([PROFILE, OTHER_SECRETS, OTHER_GPUS]))
    def the_profile_is_changed(self, profile: FineTuneProfileSpec) -> None:
        self.cluster.profile = profile

    @rule()
    def the_bundle_is_deleted(self) -> None:
        self.cluster.bundle = None

    @rule(seconds=st.sampled_from([1, 10, 60, 200, 700, 4000, 25_000]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.now += timedelta(seconds=seconds)

    @rule(suspend=st.booleans())
    def the_job_is_suspended_or_resumed(self, suspend: bool) -> None:
        self._change_spec(suspend=suspend)

    @rule(policy=POLICIES)
    def the_run_policy_is_changed(self, policy: RunPolicy) -> None:
        self._change_spec(run_policy=policy)

    @rule(actions=st.lists(st.integers(0, 3), min_size=1, max_size=3))
    def writes_of_the_operator_fail(self, actions: list[int]) -> None:
        self.cluster.refusals = actions
        self.was_hindered = True

    @rule(up=st.booleans())
    def the_operator_goes_or_comes(self, up: bool) -> None:
        self.cluster.operator_is_up = up
        self.was_hindered |= not up

    @precondition(lambda self: self.cluster.now.minute % 7 == 0)
    @rule()
    def the_job_is_deleted_by_its_tenant(self) -> None:
        self.cluster.deleting = True

    # What holds

    @invariant()
    def everything_holds(self) -> None:
        self.cluster.settle()
        assert not self.cluster.requested_gpu_while_invalid
        assert not self.cluster.mounted_other_secrets
        assert not self.cluster.deleted_unrecorded, "the end of an attempt may be lost"
        assert len(self._not_ended()) <= 1, "two trainers"
        if self.cluster.operator_is_up and self.cluster.status.get("state") in ("Suspended", "Complete", "Failed"):
            live = [job.name for job in self.cluster.jobs.values() if self._is_live(job) and job.step != names.CLEANUP]
            assert live == [], "a Job holds a pod"
        numbers = [number for step, number in self.cluster.created if step == "train"]
        assert numbers == sorted(set(numbers)), "an attempt was made twice"
        for status in self.cluster.statuses[self.written :]:
            self._follows(status)
        self.written = len(self.cluster.statuses)
        self._progress_follows_the_last_checkpoint()
        self._interruptions_in_vain_are_limited()
        chosen = {json.dumps(status["gpuType"]) for status in self.cluster.statuses if "gpuType" in status}
        assert len(chosen) <= 1, "the GPU type on record has changed"
        assert len(self.cluster.gpu_types) <= 1, "attempts have requested several GPU types"
        self._cleanups_are_in_order()

    def teardown(self) -> None:
        """From now on nothing happens any more but what a healthy cluster does: the job must come to its end."""
        if self.cluster.deleting:
            assert reconcile(self.cluster.world(), self.cluster.now) == Plan()
            return
        self.cluster.operator_is_up = True
        self.cluster.watch_is_late = False
        self.cluster.catch_up()
        self.cluster.cleanup_has_turn = True
        if self.cluster.earlier_job is not None:
            self.cluster.earlier_job = replace(self.cluster.earlier_job, is_cleaned=False)
        ttl = self.cluster.spec.policy.ttl_seconds_after_finished
        self._change_spec(suspend=None, run_policy=RunPolicy(ttl_seconds_after_finished=ttl))
        for _ in range(60):
            pause = self.cluster.settle()
            if self.cluster.is_over:
                break
            self._go_on()
            self.cluster.now += pause or timedelta(seconds=1)
        self.everything_holds()
        assert self.end is not None, f"the history does not end: {self.cluster.status}"
        self._is_cleaned_up()

    # Inside

    def _go_on(self) -> None:
        for job in self.cluster.jobs.values():
            if job.suspended:
                self.cluster.resume(job)
        for pod in self.cluster.pods():
            if pod.is_leaving:
                self.cluster.end(pod, 33)
            elif pod.exit_code is not None:
                continue  # a sidecar runs until the operator deletes the Job
            elif pod.phase == "Pending":
                self.cluster.start(pod, "n3")
            elif self.cluster.number_of(pod):
                if not self.cluster.is_over:
                    self.cluster.parts["artifacts"] = ARTIFACTS
                self.cluster.end(pod, 0)
            elif pod in self._of(names.CLEANUP):
                self.cluster.end(pod, 0)
            else:
                self.cluster.says(pod, "Validated", "True", "Valid", timedelta(0))
                self.cluster.end(pod, 0)

    def _follows(self, status: Object) -> None:
        """Check one written status against those before it."""
        if self.end is not None:
            self._keeps_its_end(self.end, status)
            return
        counts = status["counts"]
        self.attempts |= {record["number"]: record for record in status.get("attempts", [])}
        for list_name in ("attempts", "preflights"):
            for record in status.get(list_name, []):
                if "reason" in record:
                    known = self.reasons.setdefault((list_name, record["number"]), record["reason"])
                    assert known == record["reason"], "the reason of an end has changed"
        assert counts["attempts"] >= max((n for kind, n in self.reasons if kind == "attempts"), default=0)
        ends = list(self.reasons.values())
        assert counts.get("interruptions", 0) == sum(reason in INTERRUPTIONS for reason in ends)
        for kind, field in (("attempts", "reasons"), ("preflights", "preflightReasons")):
            failed = [reason for (each, _), reason in self.reasons.items() if each == kind and reason != "Succeeded"]
            assert counts.get(field, {}) == dict(Counter(failed)), "attempts and preflights are counted apart"
        self._has_right_times(status)
        last = {"attempts": counts["attempts"], "preflights": counts.get("preflights", 1)}
        followed = [reason in CHARGED for (kind, n), reason in self.reasons.items() if n < last[kind]]
        assert counts.get("retries", 0) == sum(followed), "not what was retried"
        if status["state"] in ("Complete", "Failed"):
            self.end = status
            self._ends_well(status)

    def _progress_follows_the_last_checkpoint(self) -> None:
        """Check that an attempt's progress is judged by all that it has stored, also where it stored it at its end."""
        records = [Attempt.model_validate(self.attempts[n]) for n in sorted(self.attempts)]
        for index, record in enumerate(records):
            if record.reason is not None and (record.checkpoint_step is not None or record.progressed is not None):
                assert record.progressed == got_further(record, records[:index], None), f"not judged anew: {record}"

    def _not_ended(self) -> list[Pod]:
        """Return the pods of attempts that have not ended, without those that are lost."""
        return [pod for pod in self._attempts() if not self.cluster.is_lost(pod)]

    def _interruptions_in_vain_are_limited(self) -> None:
        """Check that no attempt follows more interruptions in a row without progress than the run policy allows."""
        policy, number = self.cluster.spec.policy, 0
        records = [Attempt.model_validate(self.attempts[n]) for n in sorted(self.attempts)]
        for record in records:
            if record.progressed or record.reason in CHARGED:
                number = 0
            elif record.reason in INTERRUPTIONS:
                number += is_in_vain(record)
        is_last = bool(records) and is_in_vain(records[-1]) and number > policy.retries
        decides = self.cluster.operator_is_up and not self.cluster.deleting and not self.cluster.refusals
        if is_last and decides and self.cluster.spec.suspend is not True and not self._not_ended():
            assert self.end is not None, f"{number} interruptions in vain, and {policy.retries} are allowed"

    def _has_right_times(self, status: Object) -> None:
        """Check that no pod is recorded to have ended before it did, whatever the clock of its node said."""
        for record in status.get("attempts", []):
            for pod in record.get("pods") or [{**record, "name": record.get("podName")}]:
                ended = self.cluster.ends.get(pod["name"])
                if ended is not None and "completionTime" in pod:
                    assert ended <= datetime.fromisoformat(pod["completionTime"]) <= self.cluster.now

    def _ends_well(self, status: Object) -> None:
        ready = next(c for c in status["conditions"] if c["type"] == "Ready")
        assert ready["message"]
        if status["state"] == "Failed":
            assert FAILURES[FailureReason(ready["reason"])].remedy in ready["message"] or AGAIN in ready["message"]
            assert ready["reason"] != FailureReason.EVALUATION_GATE_FAILED, "nothing is published"
            deadline = self.cluster.spec.policy.active_deadline_seconds
            is_late = ready["reason"] == FailureReason.DEADLINE_EXCEEDED
            assert not is_late or f" {deadline} s after" in ready["message"], "not the deadline that the spec has"
            # A deadline, or a spec that cannot be carried out, waits for no pod that nobody has asked to stop.
            waits = ready["reason"] not in (FailureReason.DEADLINE_EXCEEDED, FailureReason.SPEC_INVALID)
            seen = [pod for pod in self._not_ended() if pod.name not in self.cluster.unseen]
            stopping = [pod for pod in seen if pod.is_leaving or waits]
            assert "artifacts" in self.cluster.parts or stopping == [], "the job ends before its last pod"
        assert all("completionTime" in a for a in status.get("attempts", []) if "startTime" in a)
        spent = sum(a.get("gpuSeconds", 0) for a in status.get("attempts", []))
        assert status.get("gpuSeconds", 0) >= spent

    @staticmethod
    def _keeps_its_end(end: Object, status: Object) -> None:
        """Check what is written after the end: that a changed spec was seen, and that the checkpoints are deleted."""

        def told(status: Object) -> dict[str, Any]:
            conditions = {c["type"]: {**c, "observedGeneration": 0} for c in status["conditions"]}
            conditions.pop("CheckpointsDeleted", None)
            return {**status, "observedGeneration": 0, "conditions": conditions}

        assert told(status) == told(end), f"{end['state']} was followed by {status}"

    def _cleanups_are_in_order(self) -> None:
        """Check that the checkpoints of a failed job alone are deleted, in time, once, and without a trainer."""
        cleanups = [job for job in self.cluster.jobs.values() if job.step == names.CLEANUP]
        told = self._deleted()
        assert len(cleanups) <= 1
        if not cleanups and not told:
            return
        assert self.end is not None
        assert self.end["state"] == "Failed", "the checkpoints of a job that may go on were deleted"
        assert "artifacts" not in self.cluster.parts
        decides = self.cluster.operator_is_up and not self.cluster.deleting
        if cleanups and decides and not self.cluster.refusals:
            (job,) = cleanups
            ended = end_of(self.cluster.run_of(job), self.cluster.now) is not None
            assert bool(told) == ended, "the end of a cleanup is put on record, also beside a sidecar"

    def _is_cleaned_up(self) -> None:
        """Check that a failed job has its checkpoints deleted after a week at the latest, and is then settled."""
        ttl = self.cluster.spec.policy.ttl_seconds_after_finished
        self.cluster.settle()
        self.cluster.now += timedelta(seconds=ttl or 0)
        self.cluster.settle()
        self.cluster.now += WEEK
        for _ in range(20):
            pause = self.cluster.settle()
            self._go_on()
            self.cluster.now += pause or timedelta(0)
        self.everything_holds()
        world = self.cluster.world()
        assert (world.keep, self.cluster.settle()) == (None, None), "something is left to do for ever"
        if ttl is not None and not self.was_hindered:
            left = [job for job in self.cluster.jobs.values() if not (job.step == names.CLEANUP and job.failed)]
            assert (left, self.cluster.bundle) == ([], None), "the ttl leaves a failed cleanup alone, for its log"
        may_have_written = world.raw_status["counts"]["attempts"] and "artifacts" not in self.cluster.parts
        assert bool(self._deleted()) or self.cluster.status["state"] == "Complete" or not may_have_written

    def _deleted(self) -> list[Object]:
        return [c for c in self.cluster.status.get("conditions", []) if c["type"] == "CheckpointsDeleted"]

    @staticmethod
    def _is_live(job: Job) -> bool:
        return not job.is_over and any(not pod.is_over for pod in job.pods)

    def _change_spec(self, **fields: Any) -> None:
        self.cluster.generation += 1
        self.cluster.spec = self.cluster.spec.model_copy(update=fields)

    def _running(self) -> list[Pod]:
        return [pod for pod in self.cluster.pods() if pod.phase == "Running" and not pod.trainer_ended]

    def _of(self, step: str) -> list[Pod]:
        """Return the running pods of the Jobs of this step."""
        jobs = [job for job in self.cluster.jobs.values() if job.step == step]
        return [pod for pod in self._running() if any(pod in job.pods for job in jobs)]

    def _attempts(self) -> list[Pod]:
        return [pod for pod in self._running() if self.cluster.number_of(pod)]

    def _draw(self, data: st.DataObject, options: list[Any]) -> Any:
        return data.draw(st.sampled_from(options)) if options else None


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=HISTORIES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
