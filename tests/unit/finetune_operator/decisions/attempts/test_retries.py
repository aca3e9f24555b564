"""The policy of retries: what follows which end, when, and where."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import FAILURES, RETRIED_PREFLIGHTS, FailureReason, Retry
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.attempts import Attempt, Counts
from finetune_operator.decisions.attempts import progress, retries
from finetune_operator.decisions.attempts.retries import Again, GiveUp
from tests.unit.finetune_operator.worlds import NOW

POLICY = RunPolicy()
CHARGED = [r for r in FailureReason if FAILURES[r].retry in (Retry.BACKOFF, Retry.OTHER_NODE, Retry.ONCE)]
INTERRUPTIONS = [r for r in FailureReason if FAILURES[r].retry is Retry.INTERRUPTION]
OF_RUNNING_PODS = [r for r in INTERRUPTIONS if r is not FailureReason.NODE_FAULT]


def attempts(*reasons: str, **last: Any) -> list[Attempt]:
    """Attempts that ended one after another for these reasons. `last`: fields of the last one."""
    made = [
        Attempt(number=n, name=f"a{n}", reason=r, message="M.", completion_time=NOW) for n, r in enumerate(reasons, 1)
    ]
    return [*made[:-1], made[-1].model_copy(update=last)]


def counts(*reasons: str) -> Counts:
    interruptions = sum(reason in INTERRUPTIONS for reason in reasons)
    return Counts(
        attempts=len(reasons),
        retries=sum(reason in CHARGED for reason in reasons[:-1]),
        interruptions=interruptions or None,
        reasons={reason: reasons.count(reason) for reason in reasons},
    )


def counted(records: list[Attempt]) -> Counts:
    """The counts after these attempts, which are all that there were."""
    in_vain = progress.in_vain(Counts(), [], records)
    return counts(*[str(record.reason) for record in records]).model_copy(update={"in_vain": in_vain})


STOPS = (FailureReason.DEADLINE_EXCEEDED, "Suspended", "BudgetExceeded")
"""How attempts end that were stopped for what the spec said."""


def decide(*reasons: str, policy: RunPolicy = POLICY, **last: Any) -> GiveUp | Again:
    return retries.after_attempt(attempts(*reasons, **last), counts(*reasons), policy, NOW)


@pytest.mark.parametrize("reason", [r for r in FailureReason if FAILURES[r].retry is Retry.NEVER and r not in STOPS])
def test_what_a_retry_cannot_mend_ends_the_job_with_its_own_message(reason: FailureReason) -> None:
    assert decide(reason) == GiveUp(reason, "M.")


@pytest.mark.parametrize("reason", STOPS)
def test_a_stop_for_what_the_spec_said_is_no_failure_and_ends_no_row_of_interruptions(reason: str) -> None:
    assert decide(reason, policy=RunPolicy(max_retries=0, max_interruptions=0)) == Again(NOW, [])

    def in_vain(*reasons: str) -> int | None:
        ran = [each.model_copy(update={"progressed": False, "last_step": 1}) for each in attempts(*reasons)]
        return counted(ran).in_vain

    preempted = FailureReason.PREEMPTED
    assert in_vain(preempted, reason, preempted) == in_vain(preempted, preempted)


@pytest.mark.parametrize("reason", [r for r in FailureReason if FAILURES[r].retry is Retry.BACKOFF])
def test_faults_that_pass_are_tried_again_with_growing_pauses_and_then_end_the_job(reason: FailureReason) -> None:
    pauses = []
    for tried in range(1, 4):
        verdict = decide(*[reason] * tried)
        assert isinstance(verdict, Again)
        pauses.append((verdict.at - NOW).total_seconds())

    assert pauses == [10, 20, 40]
    assert decide(*[reason] * 4) == GiveUp(reason, "Attempt 4 of 4 failed: M.")


def test_pauses_end_at_ten_minutes() -> None:
    assert [retries.backoff(n).total_seconds() for n in (0, 1, 2, 6, 7, 8, 1000)] == [10, 10, 20, 320, 600, 600, 600]


@pytest.mark.parametrize("reason", [r for r in FailureReason if FAILURES[r].retry is Retry.ONCE])
def test_what_may_help_once_is_tried_once_and_at_once(reason: FailureReason) -> None:
    assert decide(reason) == Again(NOW, [])
    assert decide(reason, reason) == GiveUp(reason, "Attempt 2 of 2 failed: M.")
    assert isinstance(decide(reason, FailureReason.STORAGE_UNAVAILABLE), Again)


def test_running_out_of_gpu_memory_halves_the_micro_batch_of_every_later_attempt() -> None:
    assert retries.halvings(counts("Killed")) == 0
    assert retries.halvings(counts("GPUOutOfMemory", "Preempted", "Killed")) == 1


def test_nodes_with_a_broken_gpu_are_avoided_from_then_on() -> None:
    first = decide("GPUFault", node_name="n1")
    second = decide("GPUFault", "GPUFault", node_name="n2", avoided_nodes=["n1"])
    later = decide("GPUFault", "Evicted", node_name="n3", avoided_nodes=["n1"])

    assert first == Again(NOW, ["n1"])
    assert second == Again(NOW, ["n1", "n2"])
    assert isinstance(later, Again)
    assert later.avoided == ["n1"]


@pytest.mark.parametrize("reason", OF_RUNNING_PODS)
def test_an_interruption_that_got_further_is_never_charged(reason: FailureReason) -> None:
    assert decide(*["Killed"] * 3, *[reason] * 7, progressed=True) == Again(NOW, [])


def test_interruptions_end_the_job_when_there_are_more_than_the_policy_accepts() -> None:
    policy = RunPolicy(max_interruptions=2)

    assert isinstance(decide(*["Evicted"] * 2, policy=policy, progressed=True), Again)
    verdict = decide(*["Evicted"] * 3, policy=policy, progressed=True)

    assert isinstance(verdict, GiveUp)
    assert verdict.finding == (
        "Attempt 3 failed, after 0 retries and 3 interruptions, and spec.runPolicy.maxInterruptions allows 2 "
        "interruptions: M."
    )


def test_the_one_retry_of_an_attempt_is_not_used_up_by_a_preflight_nor_the_other_way() -> None:
    full = attempts("DiskFull")
    both = Counts(attempts=1, preflights=2, reasons={"DiskFull": 1}, preflight_reasons={"DiskFull": 1})

    assert isinstance(retries.after_attempt(full, both, POLICY, NOW), Again)
    assert isinstance(retries.after_preflight(full, both, POLICY, NOW), Again)
    for again in (both.model_copy(update={each: {"DiskFull": 2}}) for each in ("reasons", "preflight_reasons")):
        verdict = retries.after_attempt if again.reasons == {"DiskFull": 2} else retries.after_preflight
        assert isinstance(verdict(full, again, POLICY, NOW), GiveUp)
    one = RunPolicy(max_retries=1)
    assert isinstance(retries.after_attempt(full, both, one, NOW), GiveUp), "maxRetries counts both"


def in_vain(number: int, *before: Attempt) -> GiveUp | Again:
    records = [
        *before,
        *(
            a.model_copy(update={"progressed": False, "stage": "Training", "last_step": 5})
            for a in attempts(*["Preempted"] * (number + len(before)))[len(before) :]
        ),
    ]
    return retries.after_attempt(records, counted(records), POLICY, NOW)


def test_interruptions_in_a_row_that_got_no_further_count_like_retries() -> None:
    pauses = []
    for number in range(1, 4):
        verdict = in_vain(number)
        assert isinstance(verdict, Again)
        pauses.append((verdict.at - NOW).total_seconds())

    assert pauses == [0, 20, 40]
    assert isinstance(in_vain(4), GiveUp)


def test_progress_lets_the_count_of_vain_interruptions_begin_anew() -> None:
    (before,) = attempts("Preempted", progressed=True)

    assert isinstance(in_vain(3, before), Again)


EARLY = [
    {"stage": "Training"},  # it loaded the model
    {},  # it had not said anything yet
    {"stage": "Training", "resumed_from_step": 8, "checkpoint_step": 8, "last_step": 8},
]
BEGUN = [
    {"stage": "Training", "last_step": 1},
    {"stage": "Training", "resumed_from_step": 8, "last_step": 9},
    {"stage": "Training", "kept_results": 2},
    {"stage": "Evaluating", "last_step": 8, "resumed_from_step": 8},
]


def interrupted(reason: FailureReason, *ends: dict[str, Any], most: int = 100) -> GiveUp | Again:
    """What follows after attempts that got no further and ended so."""
    made = [
        record.model_copy(update={"progressed": False, **end})
        for record, end in zip(attempts(*[reason] * len(ends)), ends, strict=True)
    ]
    return retries.after_attempt(made, counted(made), RunPolicy(max_interruptions=most), NOW)


@pytest.mark.parametrize("reason", OF_RUNNING_PODS)
@pytest.mark.parametrize("early", EARLY)
def test_interruptions_before_the_first_step_have_only_their_own_limit(
    reason: FailureReason, early: dict[str, Any]
) -> None:
    assert interrupted(reason, *[early] * 9) == Again(NOW + timedelta(minutes=10), [])
    verdict = interrupted(reason, *[early] * 9, most=8)
    assert isinstance(verdict, GiveUp)
    assert "9 interruptions, and spec.runPolicy.maxInterruptions allows 8 interruptions: M." in verdict.finding
    assert "9 attempts in a row were interrupted before their first step." in verdict.finding
    assert "not Spot (spec.compute.gpuType)" in verdict.finding


@pytest.mark.parametrize("begun", BEGUN)
def test_an_attempt_that_took_a_step_or_stored_a_result_counts_as_one_in_vain(begun: dict[str, Any]) -> None:
    assert isinstance(interrupted(FailureReason.PREEMPTED, *[begun] * 3), Again)
    assert isinstance(interrupted(FailureReason.PREEMPTED, *[begun] * 4), GiveUp)
    assert isinstance(interrupted(FailureReason.PREEMPTED, *[begun] * 3, *EARLY, begun), GiveUp), "still in a row"
    assert isinstance(interrupted(FailureReason.PREEMPTED, *[begun] * 3, *EARLY), Again), "these are not charged"


def test_a_node_that_did_not_start_the_pod_is_given_time_and_counts_before_the_first_step_too() -> None:
    pauses = []
    for number in range(1, 4):
        verdict = interrupted(FailureReason.NODE_FAULT, *[{"progressed": None, "node_name": f"n{number}"}] * number)
        assert isinstance(verdict, Again)
        pauses.append((verdict.at - NOW).total_seconds())

    assert pauses == [10, 20, 40]
    assert isinstance(interrupted(FailureReason.NODE_FAULT, *[{"progressed": None}] * 4), GiveUp)


@pytest.mark.parametrize(
    ("ends", "ran", "avoided"),
    [
        (["n1"], [], []),
        (["n1", "n2"], [], []),
        (["n1", "n1"], [], ["n1"]),
        (["n1", "n1", "Preempted"], [], []),
        (["n1", "n2", "n1"], [], ["n1"]),
        (["n1", "Suspended", "n1"], [], ["n1"]),
        (["n1", "Suspended", "n1"], [1], []),
        (["n1", "BudgetExceeded", "n1"], [1], []),
        (["n1", "Evicted", "n1"], [], ["n1"]),
        (["n1", "Preempted", "n1"], [1], []),
        (["n1", "n1"], [0], ["n1"]),
        (["n1", "n1"], [1], []),
        ([None, None], [], []),
    ],
)
def test_a_node_is_avoided_if_it_did_not_start_two_attempts_between_which_none_ran(
    ends: list[str | None], ran: list[int], avoided: list[str]
) -> None:
    """`ends`: the node that refused the attempt, or another reason. `ran`: indices of the attempts that ran before."""
    made = [
        record.model_copy(update={"node_name": end, "progressed": False if index in ran else None})
        for index, (record, end) in enumerate(
            zip(attempts(*["NodeFault" if e in ("n1", "n2", None) else e for e in ends]), ends, strict=True)
        )
    ]

    verdict = retries.after_attempt(made, counted(made), POLICY, NOW)

    assert isinstance(verdict, Again)
    assert verdict.avoided == avoided


def test_the_remedy_is_told_from_the_third_interruption_before_the_first_step_on() -> None:
    def told(*ends: dict[str, Any]) -> str:
        made = attempts(*["Preempted"] * len(ends))
        records = [r.model_copy(update={"progressed": False, **end}) for r, end in zip(made, ends, strict=True)]
        return retries.before_first_step(records)

    assert told({}, {}) == told({}, {}, {}, BEGUN[0]) == ""
    assert told(*[{}] * 10).startswith("10 or more attempts in a row"), "the status lists no more"
    assert told(BEGUN[0], {}, {}, {}).startswith("3 attempts in a row were interrupted before their first step.")


def test_pods_that_never_ran_are_waited_for_longer_and_longer_but_not_given_up() -> None:
    verdict = decide(*["Evicted"] * 8)

    assert verdict == Again(NOW + timedelta(minutes=10), [])


def test_what_the_tenant_stopped_is_resumed_at_once_and_charged_to_nobody() -> None:
    assert decide("Killed", "Killed", "Killed", "Suspended", avoided_nodes=["n1"]) == Again(NOW, ["n1"])


def test_without_retries_a_first_failure_says_why_it_was_the_last() -> None:
    verdict = decide("StorageUnavailable", policy=RunPolicy(max_retries=0))

    assert verdict == GiveUp(
        FailureReason.STORAGE_UNAVAILABLE, "M. It was not retried, because spec.runPolicy.maxRetries allows 0 retries."
    )


def test_a_preflight_whose_service_account_was_deleted_while_it_ran_is_tried_again() -> None:
    reason = FailureReason.STATUS_NOT_WRITABLE

    assert isinstance(retries.after_preflight(attempts(reason), counts(reason), POLICY, NOW), Again)


@pytest.mark.parametrize("reason", FailureReason)
def test_a_preflight_is_tried_again_for_faults_of_its_surroundings_only(reason: FailureReason) -> None:
    verdict = retries.after_preflight(attempts(reason), counts(reason), POLICY, NOW)

    assert isinstance(verdict, Again) is (reason in RETRIED_PREFLIGHTS)


@pytest.mark.parametrize("reason", CHARGED + INTERRUPTIONS)
def test_the_remedy_of_what_was_tried_again_does_not_ask_to_try_again(reason: FailureReason) -> None:
    assert "create the job again" not in FAILURES[reason].remedy.lower()


def test_a_reason_of_a_later_version_is_tried_again_because_nothing_is_known_against_it() -> None:
    unknown = attempts("AbductedByAliens")

    assert retries.after_preflight(unknown, counts("AbductedByAliens"), POLICY, NOW) == Again(NOW, [])
    assert retries.after_attempt(unknown, counts("AbductedByAliens"), POLICY, NOW) == Again(NOW, [])


def test_preflights_end_before_the_name_of_their_job_is_too_long() -> None:
    (last,) = attempts("NodeLost", number=999)
    policy = RunPolicy(max_interruptions=10_000)

    assert isinstance(retries.after_preflight([last], counts("NodeLost"), policy, NOW), GiveUp)
    assert isinstance(
        retries.after_preflight([last.model_copy(update={"number": 998})], counts("NodeLost"), policy, NOW), Again
    )
