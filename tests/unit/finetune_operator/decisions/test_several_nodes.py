"""A job on several nodes: one Indexed Job, a way for its pods to meet, a limit for the last one, and one bill."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_api.status.attempts import Attempt
from finetune_api.status.job import ConditionType
from finetune_operator.decisions.attempts.gathering import LIMIT, has_gathered
from finetune_operator.decisions.attempts.placement import avoided_after
from finetune_operator.decisions.attempts.records import history
from finetune_operator.decisions.objects import children, claims, gangs
from finetune_operator.decisions.objects.children import Try
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.claims import Claim
from finetune_operator.observed.facts.pods import NodeState, Object, Pod, PodCondition
from finetune_operator.observed.world import Progress, World
from tests.unit.finetune_operator.decisions.attempts.recorded import GPU, HOUR, attempts, priced
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, UID, fresh, pod, saying, validated, with_status

TWO = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"nodes": 2, "gpus_per_node": 4})})
NAME, JOB = "nodes-tickets-12345678", "tickets-12345678-a1"
SAID = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu."
PLACED = {"PodScheduled": PodCondition("True", "", "", NOW)}
UNPLACED = {"PodScheduled": PodCondition("False", "Unschedulable", SAID, NOW)}


def job(**changes: Any) -> Object:
    """The Job of an attempt on two nodes."""
    return children.attempt_job(fresh(), TWO, PROFILE, Try(1, GPU, **changes))


def on(index: int, phase: str = "Running", **fields: Any) -> Pod:
    usual = {"name": f"{JOB}-{index}-x", "node_name": f"n{index}", "index": index, "conditions": PLACED}
    return pod(phase, **{**usual, **fields})


def two(*pods: Pod, **fields: Any) -> World:
    """The job, whose attempt has these pods. A GPU costs 2.50 an hour."""
    run = Run(JOB, NOW, begun=NOW, nodes=2, **fields).with_pods(list(pods))
    return validated(spec=TWO, profile=priced("2.50"), attempts={1: run})


def test_one_pod_runs_on_each_node_and_the_operator_alone_ends_the_attempt() -> None:
    spec = job()["spec"]
    assert {name: spec[name] for name in ("completionMode", "completions", "parallelism", "backoffLimitPerIndex")} == {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
        "backoffLimitPerIndex": 0,
    }
    assert "backoffLimit" not in spec, "the Job controller would delete the other pods when one has failed"
    assert spec["podReplacementPolicy"] == "Failed"
    pods = spec["template"]["spec"]
    (apart,) = pods["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    labels = spec["template"]["metadata"]["labels"]
    assert apart["labelSelector"]["matchLabels"].items() <= labels.items()
    assert apart["labelSelector"]["matchLabels"]["finetune.dev/attempt"] == "1", "a later attempt may use the node"


def test_avoided_nodes_are_avoided_by_every_pod() -> None:
    affinity = job(avoided=("n7",))["spec"]["template"]["spec"]["affinity"]
    assert set(affinity) == {"nodeAffinity", "podAntiAffinity"}
    assert "n7" in json.dumps(affinity["nodeAffinity"])


def test_the_pods_meet_at_the_stable_name_of_the_first_one() -> None:
    pods = job()["spec"]["template"]["spec"]
    trainer = pods["containers"][0]
    first = f"{JOB}-0.{NAME}.team.svc:29400"
    assert trainer["args"][:5] == ["train", "--nodes", "2", "--first-node", first]
    assert trainer["args"][5:] == ["--attempt", "1", "/etc/finetune/bundle/bundle.json"]
    assert pods["subdomain"] == NAME
    assert trainer["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}} in trainer["env"]


def test_a_headless_service_names_pods_before_they_are_ready_and_only_pods_of_the_job_reach_them() -> None:
    service, policy = gangs.network(fresh(), TWO)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = job()["spec"]["template"]["metadata"]["labels"]
    selector = service["spec"]["selector"]
    assert selector.items() <= labels.items()
    assert policy["spec"]["policyTypes"] == ["Ingress"], "the pods reach the storage as before"
    assert policy["spec"]["podSelector"] == {"matchLabels": selector}
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": selector}}]}]
    for made in (service, policy):
        assert made["metadata"]["name"] == NAME
        assert made["metadata"]["ownerReferences"][0]["uid"] == UID


def test_the_service_exists_before_the_job_and_a_job_on_one_node_has_none() -> None:
    assert kinds(reconcile(validated(spec=TWO), NOW))[-3:] == ["Service", "NetworkPolicy", "Job"]
    assert kinds(reconcile(validated(), NOW))[-1:] == ["Job"]
    assert "Service" not in kinds(reconcile(validated(), NOW))
    alone = children.attempt_job(fresh(), SPEC, PROFILE, Try(1, GPU))
    assert (alone["spec"]["backoffLimit"], "completions" in alone["spec"]) == (0, False)
    assert "subdomain" not in alone["spec"]["template"]["spec"]


@pytest.mark.parametrize(("nodes", "deleted"), [(1, []), (2, [NAME])])
def test_the_service_goes_with_the_jobs_when_the_time_to_live_is_over(nodes: int, deleted: list[str]) -> None:
    over = fresh(ended_at=NOW - HOUR, ttl=HOUR / 2, children=(JOB,), had_several_nodes=nodes > 1)
    over = replace(over, raw_status={"observedGeneration": 1})
    assert reconcile(over, NOW).delete_networks == deleted


@pytest.mark.parametrize("keep", [None, 7 * 24 * HOUR], ids=["no checkpoints", "checkpoints are kept"])
def test_the_service_goes_in_its_time_also_if_a_person_has_deleted_the_jobs(keep: timedelta | None) -> None:
    over = fresh(ended_at=NOW, ttl=HOUR, keep=keep, had_several_nodes=True, raw_status={"observedGeneration": 1})

    plans = [reconcile(over, NOW + hours * HOUR) for hours in (0, 2, 25)]

    assert [plan.delete_networks for plan in plans] == [[], [NAME], []], "not at each start of the operator"


def test_the_deletion_of_the_service_is_not_repeated_while_a_cleanup_waits_for_its_turn() -> None:
    over = fresh(ended_at=NOW, ttl=HOUR, keep=HOUR, had_several_nodes=True, raw_status={"observedGeneration": 1})

    assert reconcile(over, NOW + 2 * HOUR).delete_networks == []


def test_pods_that_had_their_node_before_their_resumed_job_said_that_it_started_have_run_together() -> None:
    world = two(on(0), on(1))
    record = history(world, NOW).last
    assert record is not None

    resumed = [replace(world.attempts[1], begun=NOW + timedelta(seconds=later)) for later in (59, 600)]

    assert [has_gathered(record, run) for run in resumed] == [True, False], "the second time, with other pods"


def test_a_pod_without_a_node_is_waited_for_up_to_a_limit_while_the_others_hold_their_gpus() -> None:
    world = two(on(0), on(1, "Pending", node_name=None, conditions=UNPLACED))
    early, late = reconcile(world, NOW + LIMIT - timedelta(seconds=1)), reconcile(world, NOW + LIMIT)
    assert (state(early), reason(early)) == ("Queued", "WaitingForGPU")
    assert message(early).endswith(
        "1 of the 2 pods of the attempt has a node. It gives its GPUs back at 03:14:05 UTC if the others have none by "
        "then."
    )
    assert early.requeue_after == timedelta(seconds=1)
    (ended,) = attempts(late)
    assert (ended["reason"], late.delete_jobs) == (FailureReason.EVICTED, [JOB])
    assert "progressed" not in ended, "no trainer had anything to do"
    assert ended["message"] == (
        f"1 of the 2 pods of the attempt has a node, and the others have had none for 10 min: {SAID} The pods were "
        "ended, so that other jobs can use their GPUs. What helps: wait until another pod frees its nvidia.com/gpu, "
        "or add a node with one."
    )
    again = with_status(world, late)
    (job,) = reconcile(replace(again, attempts={}), NOW + LIMIT).create[-1:]
    assert (job["kind"], job["metadata"]["name"]) == ("Job", "tickets-12345678-a2"), "it is tried again"


def test_pods_that_have_run_together_wait_for_no_other_when_one_is_gone() -> None:
    """A pod was deleted by force, or with its Node object. The other one stores its checkpoint, and then says that it
    has lost it."""
    world = two(on(0), on(1))
    world = with_status(world, reconcile(world, NOW))
    alone = replace(world, attempts=two(on(0)).attempts)
    for time in (LIMIT / 2, 2 * LIMIT):
        plan = reconcile(alone, NOW + time)
        assert (state(plan), reason(plan), plan.delete_jobs) == ("Running", "Training", [])
        assert "gives its GPUs back" not in message(plan)
    told = TerminationMessage(reason=FailureReason.PEER_LOST, message="Lost.", step=7)
    lost = on(0, "Failed", exit_code=38, finished=NOW + HOUR, termination=told)
    (ended,) = attempts(reconcile(replace(world, attempts=two(lost).attempts), NOW + HOUR))
    assert ended["reason"] == FailureReason.EVICTED
    assert ended["message"] == f"The pod with index 1 of Job {JOB} was deleted before its work was done."
    assert ended["lastStep"] == 7


def test_the_last_pod_that_is_left_counts_as_lost_with_its_node() -> None:
    world = two(on(0), on(1))
    world = with_status(world, reconcile(world, NOW))
    leaving = on(0, due=NOW + HOUR, grace=timedelta(0), node_state=NodeState.GONE)
    (ended,) = attempts(reconcile(replace(world, attempts=two(leaving).attempts), NOW + HOUR))
    assert ended["reason"] in (FailureReason.NODE_LOST, FailureReason.EVICTED)


def test_a_job_that_its_queue_starts_again_waits_for_its_last_pods_anew() -> None:
    world = two(on(0), on(1))
    world = with_status(world, reconcile(world, NOW))
    placed = {"PodScheduled": PodCondition("True", "", "", NOW + HOUR)}
    again = on(0, name="again", created=NOW + HOUR, conditions=placed)
    resumed = Run(JOB, NOW, begun=NOW + HOUR, nodes=2).with_pods([again])
    world = replace(world, attempts={1: resumed})
    (ended,) = attempts(reconcile(world, NOW + HOUR + LIMIT))
    assert reason(reconcile(world, NOW + HOUR)) == "WaitingForGPU"
    assert "the others have had none for 10 min" in ended["message"]


@pytest.mark.parametrize(
    ("looks", "second"),
    [
        ([], "has no node"),
        ([], "is refused"),
        (["leaving"], "is refused"),
        (["leaving"], "has no node"),
        (["leaving", "gone"], "has no node"),
        (["leaving", "gone"], "is refused"),
        (["gone"], "is refused"),
    ],
)
def test_a_job_that_its_queue_starts_again_within_a_minute_waits_for_its_last_pods_anew(
    looks: list[str], second: str
) -> None:
    world = two(on(0), on(1))
    world = with_status(world, reconcile(world, NOW))
    due = NOW + timedelta(seconds=150)
    for seconds, look in enumerate(looks, start=30):
        old = [on(0, due=due), on(1, due=due)] if look == "leaving" else []
        world = replace(world, attempts={1: Run(JOB, NOW, nodes=2, suspended=True, queue="q").with_pods(old)})
        world = with_status(world, reconcile(world, NOW + timedelta(seconds=seconds)))
    again = NOW + timedelta(seconds=50)
    placed = {"PodScheduled": PodCondition("True", "", "", again)}
    pods = [on(0, name=f"{JOB}-0-y", created=again, started=again, conditions=placed)]
    if second == "has no node":
        pods.append(on(1, "Pending", name=f"{JOB}-1-y", created=again, node_name=None, conditions=UNPLACED))
    resumed = Run(JOB, NOW, begun=again, nodes=2, queue="q", refusal="full" if second == "is refused" else "")
    world = replace(world, attempts={1: resumed.with_pods(pods)})

    (ended,) = attempts(reconcile(world, again + LIMIT))

    assert "the others have had none for 10 min" in ended["message"]


def test_a_pod_that_is_being_removed_holds_no_gpu_for_its_replacement() -> None:
    """A queue has stopped the Job after an hour and resumes it. The trainer of one old pod has ended, and a sidecar
    uses the rest of the grace period."""
    old = on(0, exit_code=33, due=NOW + HOUR + LIMIT, finished=NOW + HOUR)
    new = on(1, "Pending", name="new", created=NOW + HOUR, node_name=None, conditions=UNPLACED)
    plan = reconcile(two(old, new), NOW + HOUR + LIMIT / 5)
    assert (reason(plan), plan.delete_jobs) == ("WaitingForGPU", [])
    assert "gives its GPUs back" not in message(plan)


def test_a_pod_that_is_drained_beside_another_one_is_not_taken_for_one_without_a_node() -> None:
    drained = on(0, "Failed", exit_code=33, due=NOW + HOUR + LIMIT, finished=NOW + HOUR)
    pulls = on(0, "Pending", due=NOW + HOUR + LIMIT)
    for world in (two(drained, on(1)), two(pulls, on(1, "Pending"))):
        plan = reconcile(world, NOW + HOUR + LIMIT / 5)
        assert "have had none" not in str(plan.status)
        assert "gives its GPUs back" not in message(plan)


def test_a_pod_that_a_quota_refuses_is_waited_for_likewise() -> None:
    world = two(on(0), refusal="exceeded quota: gpus, requested: 4")
    assert "Wait until other pods of the namespace end, or raise ResourceQuota gpus." in message(reconcile(world, NOW))
    (ended,) = attempts(reconcile(world, NOW + LIMIT))
    assert "for 10 min: exceeded quota: gpus, requested: 4." in ended["message"]


def test_pods_that_hold_no_gpu_wait_without_a_limit_and_all_with_a_node_wait_for_no_other() -> None:
    nobody = two(*(on(index, "Pending", node_name=None, conditions=UNPLACED) for index in (0, 1)))
    everybody = two(on(0), on(1, "Pending"))
    for world in (nobody, everybody):
        plan = reconcile(world, NOW + 2 * LIMIT)
        assert (reason(plan), plan.delete_jobs) == ("WaitingForGPU", [])
        assert "gives its GPUs back" not in message(plan)


def test_every_pod_is_on_record_with_its_node_and_all_gpus_are_billed() -> None:
    (running,) = attempts(reconcile(two(on(0), on(1)), NOW + HOUR))
    assert [(each["name"], each["nodeName"]) for each in running["pods"]] == [(f"{JOB}-{i}-x", f"n{i}") for i in (0, 1)]
    assert running["gpus"] == 4
    told = TerminationMessage(reason=FailureReason.GPU_FAULT, message="Rank 5 of 8 on node n1: The GPU broke.")
    lost = TerminationMessage(reason=FailureReason.PEER_LOST, message="Lost.", step=7, checkpoint_step=5)
    failed = two(
        on(0, "Failed", exit_code=38, finished=NOW + HOUR, termination=lost),
        on(1, "Failed", exit_code=31, finished=NOW + HOUR, termination=told),
        failed=True,
    )
    plan = reconcile(failed, NOW + HOUR)
    (ended,) = attempts(plan)
    assert (ended["reason"], ended["message"]) == (FailureReason.GPU_FAULT, told.message)
    assert (ended["gpuSeconds"], ended["cost"]) == (2 * 4 * 3600, "20.0000")
    assert (ended["podName"], ended["nodeName"]) == (f"{JOB}-1-x", "n1")
    assert (ended["lastStep"], ended["checkpointStep"]) == (7, 5), "only rank 0 knows of the checkpoints"
    assert avoided_after([Attempt.model_validate(ended)]) == ["n1"]
    assert attempts(reconcile(with_status(failed, plan), NOW + HOUR))[0] == ended, "nothing is billed twice"


@pytest.mark.parametrize(("by_status", "by_pods", "known"), [(4, (3, 5), 5), (None, (None, 5), 5), (4, (3, None), 4)])
def test_a_result_that_any_pod_has_stored_is_progress(
    by_status: int | None, by_pods: tuple[int | None, int | None], known: int
) -> None:
    """Rank 0 may have written its share of the answers in an earlier attempt, and then stores nothing more."""
    stopped = [
        TerminationMessage(reason=FailureReason.PREEMPTED, message="M.", kept_results=results) for results in by_pods
    ]
    pods = [on(i, "Failed", exit_code=33, finished=NOW, termination=each) for i, each in enumerate(stopped)]
    world = replace(two(*pods, failed=True), progress=Progress(1, kept_results=by_status))
    (ended,) = attempts(reconcile(world, NOW))
    assert (ended["keptResults"], ended["progressed"]) == (known, True)


def test_a_budget_counts_the_gpus_of_all_pods() -> None:
    policy = {"budget": {"gpuHours": 4}}
    spec = TWO.model_validate({**TWO.model_dump(by_alias=True, exclude_none=True), "runPolicy": policy})
    world = replace(two(on(0), on(1)), spec=spec)
    early, late = reconcile(world, NOW + HOUR / 2 - timedelta(seconds=1)), reconcile(world, NOW + HOUR / 2)
    assert (early.requeue_after, early.delete_jobs) == (timedelta(seconds=2), [])
    assert late.delete_jobs == [JOB]


def test_a_job_that_is_suspended_ends_all_pods() -> None:
    world = replace(two(on(0), on(1)), spec=TWO.model_copy(update={"suspend": True}))
    assert reconcile(world, NOW).delete_jobs == [JOB]


def test_a_clock_that_is_wrong_hides_no_word_of_the_first_pod() -> None:
    """Each pod is the only one of its node, so every condition of the attempt is its word."""
    early = NOW - HOUR
    world = saying(two(on(0), on(1)), ConditionType.TRAINED, since=early)
    world = replace(world, authors={ConditionType.TRAINED: 1})
    assert reason(reconcile(world, NOW)) == "Evaluating"


@pytest.mark.parametrize(
    ("modes", "output", "refused"),
    [
        (("ReadWriteOnce",), True, True),
        (("ReadWriteOncePod",), True, True),
        (("ReadWriteOnce",), False, True),
        (("ReadOnlyMany",), False, False),
        (("ReadWriteMany",), True, False),
        (("ReadWriteOnce", "ReadWriteMany"), True, False),
        ((), True, False),
    ],
)
def test_a_claim_that_one_node_at_a_time_can_mount_is_refused_before_a_gpu(
    modes: tuple[str, ...], output: bool, refused: bool
) -> None:
    field, uri = ("output", "pvc://work/results") if output else ("model", "pvc://work/model")
    written = TWO.model_dump(by_alias=True, exclude_none=True)
    spec = TWO.model_validate({**written, field: {"uri": uri}})
    known: dict[str, Claim | None] = {"work": Claim("Bound", modes)}
    found = claims.problem(spec, "team", known)
    assert (found is not None) is refused
    if found:
        assert found.is_final
        assert found.finding == (
            f"spec.{field}.uri: PersistentVolumeClaim work has access mode {modes[0]}, so only one node at a time can "
            "mount it, but spec.compute.nodes is 2."
        )
    alone = spec.model_copy(update={"compute": SPEC.compute})
    assert claims.problem(alone, "team", known) is None
