"""What a try shows follows from the looks at its job."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.figures.judge import (
    Done,
    Journal,
    Outcome,
    Sample,
    Seen,
    had_effect,
    outcome,
    seconds_to_recover,
    work_repeated,
)
from tests.chaos.phases import Phase, phase_of
from tests.chaos.table import FAULTS, SHORT, Task
from tests.integration.kube import Object

TRAIN = Phase.TRAIN
BY_NAME = {fault.name: fault for fault in FAULTS}
KILL, OUTAGE = BY_NAME["trainer-sigkill"], BY_NAME["s3-away"]


def steps(begin: float, first: int, last: int, each: float = 1.0) -> Journal:
    """The journal of a pod whose step `first` is done at `begin`, and every further one `each` seconds later."""
    return [Done(begin + each * place, step) for place, step in enumerate(range(first, last + 1))]


def seen(samples: Sequence[Sample], *journals: Journal, injected: float = 0.0, status: Object | None = None) -> Seen:
    return Seen(samples, journals, injected, status or {})


def test_steps_are_repeated_from_where_the_next_pod_began_and_cost_what_the_first_had_spent_on_them() -> None:
    assert work_repeated([steps(0, 1, 50, 2.0), steps(200, 41, 60)]) == (10, 20.0)


def test_all_steps_are_repeated_if_nothing_was_resumed() -> None:
    assert work_repeated([steps(0, 1, 50), steps(90, 1, 60)]) == (50, 49.0)


def test_a_pod_that_made_few_or_no_steps_repeats_only_those() -> None:
    assert work_repeated([steps(0, 1, 50), [], steps(90, 50, 60)]) == (1, 1.0)
    assert work_repeated([steps(0, 1, 50), steps(90, 1, 20, 5.0), steps(250, 21, 60)]) == (50, 49.0)


def test_nothing_is_repeated_where_the_pod_went_on_or_the_next_one_resumed_at_its_last_step() -> None:
    assert work_repeated([]) == work_repeated([steps(0, 1, 60)]) == (0, 0.0)
    assert work_repeated([steps(0, 1, 50), steps(90, 51, 60)]) == (0, 0.0)


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60)), max_size=4))
def test_the_repeated_work_is_what_pods_did_beyond_one_run(last: int, pods: list[tuple[int, int]]) -> None:
    journals, reached = [steps(0, 1, last)], last
    for back, forth in pods:
        began = max(1, reached + 1 - back)
        journals.append(steps(1000 * len(journals), began, began + forth - 1))
        reached = max(reached, began + forth - 1)
    assert work_repeated(journals)[0] == sum(map(len, journals)) - reached


def test_after_a_kill_only_another_pod_shows_the_recovery() -> None:
    looks = [Sample(0, TRAIN, "a"), Sample(6, None), Sample(9, Phase.LOAD, "b"), Sample(12, TRAIN, "b")]
    last_words = steps(0, 1, 6)  # two of them after the signal
    assert seconds_to_recover(KILL, seen(looks, last_words, steps(13, 4, 9), injected=3.5)) == 14 - 3.5
    assert seconds_to_recover(OUTAGE, seen(looks, last_words, steps(13, 4, 9), injected=3.5)) == 4 - 3.5
    assert seconds_to_recover(KILL, seen(looks, last_words, injected=3.5)) is None


def test_a_job_has_recovered_in_a_later_phase_too_but_not_in_an_earlier_one() -> None:
    looks = [Sample(0, Phase.BASE, "a"), Sample(3, Phase.LOAD, "a"), Sample(4, None), Sample(6, TRAIN, "a")]
    assert seconds_to_recover(OUTAGE, seen(looks, injected=1.0)) == 5.0
    assert seconds_to_recover(OUTAGE, seen(looks[:3], injected=1.0)) is None


def test_another_pod_has_recovered_once_it_is_in_the_phase_of_the_killed_one() -> None:
    looks = [Sample(0, Phase.PUBLISH, "a"), Sample(2, Phase.PUBLISH, "a"), Sample(5, Phase.LOAD, "b")]
    looks += [Sample(8, Phase.PUBLISH, "b")]
    assert seconds_to_recover(KILL, seen(looks, injected=1.0)) == 7.0
    assert seconds_to_recover(KILL, seen(looks[:3], injected=1.0)) is None


def test_a_job_that_was_hit_while_it_published_has_recovered_when_it_is_complete() -> None:
    looks = [Sample(0, Phase.PUBLISH, "a"), Sample(5, None)]
    assert seconds_to_recover(OUTAGE, seen(looks, injected=1.0, status={"state": "Complete"})) == 4.0


def test_a_fault_that_ended_no_pod_is_no_try_unless_another_pod_shows_that_it_did() -> None:
    looks = [Sample(0, TRAIN, "a"), Sample(5, Phase.PUBLISH, "a")]
    complete = ended("Complete", "Succeeded")
    assert not had_effect(KILL, seen(looks, injected=4.0, status=complete))
    assert had_effect(KILL, seen(looks, injected=4.0, status=ended("Complete", "Succeeded", "Killed")))
    assert had_effect(KILL, seen([*looks, Sample(9, TRAIN, "b")], injected=4.0, status=complete))
    assert had_effect(OUTAGE, seen(looks, injected=4.0, status=complete))


def test_a_job_that_had_published_before_it_was_made_again_is_no_try_of_that_fault_only() -> None:
    status = ended("Failed", "OutputOccupied")
    occupied = seen([Sample(0, TRAIN, "a")], injected=1.0, status=status)
    assert had_effect(BY_NAME["made-again"], occupied), "a rival that has not published must not stop it"
    status["conditions"][0]["message"] = "spec.output.uri s3://results/a already contains the results of lane-1/a."
    assert not had_effect(BY_NAME["made-again"], occupied)
    assert had_effect(OUTAGE, occupied), "another fault must not make a job take its own results for another's"


def test_the_training_after_a_preflight_is_no_sign_that_the_preflight_was_ended() -> None:
    looks = [Sample(0, Phase.PREFLIGHT, "a"), Sample(5, TRAIN, "b")]
    assert not had_effect(KILL, seen(looks, injected=1.0, status=ended("Complete", "Succeeded")))


def test_a_job_whose_first_pod_waits_for_a_node_is_not_hit() -> None:
    looks = [
        Sample(0, Phase.PREFLIGHT),
        Sample(2, Phase.PREFLIGHT, "p"),
        Sample(4, None),
        Sample(5, Phase.LOAD),
        Sample(6, TRAIN, "a"),
    ]
    assert not had_effect(KILL, seen(looks, injected=1.0, status=ended("Complete", "Succeeded")))


def ended(state: str, ready: str, *reasons: str) -> Object:
    attempts = [{"number": i + 1, "reason": reason} for i, reason in enumerate((*reasons, "Succeeded"))]
    return {"state": state, "conditions": [{"type": "Ready", "reason": ready, "message": ""}], "attempts": attempts}


def judged(name: str, status: Object) -> Outcome:
    return outcome(Task(BY_NAME[name], TRAIN, 0), seen([Sample(0, TRAIN, "a")], status=status))


def test_a_fault_that_needs_a_retry_is_right_if_the_job_completes_and_the_attempt_says_so() -> None:
    assert judged("trainer-sigkill", ended("Complete", "Succeeded", "Killed")).is_right
    assert not judged("trainer-sigkill", ended("Complete", "Succeeded", "TrainerCrashed")).right_reason
    assert not judged("trainer-sigkill", ended("Failed", "Killed", "Killed")).ended_right


def test_a_fault_that_ends_a_pod_is_wrong_if_no_attempt_says_so() -> None:
    assert not judged("trainer-sigkill", ended("Complete", "Succeeded")).right_reason
    assert judged("s3-away", ended("Complete", "Succeeded")).is_right


def test_a_fault_that_no_retry_can_mend_is_right_if_the_job_fails_for_its_reason() -> None:
    assert judged("loss-not-a-number", ended("Failed", "LossDiverged", "LossDiverged")).is_right
    assert not judged("loss-not-a-number", ended("Complete", "Succeeded")).ended_right
    assert not judged("loss-not-a-number", ended("Failed", "TrainerCrashed", "LossDiverged")).right_reason


def test_more_lost_work_than_the_fault_allows_is_wrong() -> None:
    looks = [Sample(0, TRAIN, "a"), Sample(70, TRAIN, "b")]
    stopped = Task(BY_NAME["trainer-sigterm"], TRAIN, 0)
    lost = outcome(stopped, seen(looks, steps(0, 1, 50), steps(70, 50, 90), status=ended("Complete", "", "Preempted")))
    assert (lost.steps_repeated, lost.little_lost, lost.is_right) == (1, False, False)
    for began, right in ((1, True), (2, False)):  # 59 and 61 seconds
        first = steps(0, 1, 60) if right else steps(0, 1, 63)
        killed = seen(looks, first, steps(70, began, 90), status=ended("Complete", "", "Killed"))
        assert outcome(Task(KILL, TRAIN, 0), killed).is_right is right


def test_a_preflight_that_was_tried_again_has_a_reason_too() -> None:
    status = {**ended("Complete", "Succeeded"), "preflights": [{"number": 1, "reason": "TrainerCrashed"}]}
    assert not judged("trainer-sigkill", status).right_reason


def test_the_phase_told_is_the_one_in_which_the_fault_came() -> None:
    looks = [Sample(0, Phase.PREFLIGHT), Sample(3, None), Sample(4, Phase.LOAD), Sample(9, TRAIN)]
    told = [outcome(Task(KILL, Phase.PREFLIGHT, 0), seen(looks, injected=at)).phase for at in (2, 3.5, 5)]
    assert told == [Phase.PREFLIGHT, Phase.PREFLIGHT, Phase.LOAD]


def test_other_weights_than_without_a_fault_are_wrong_and_none_are_not_compared() -> None:
    looks = seen([Sample(0, TRAIN, "a")], status=ended("Complete", "Succeeded", "Killed"))
    assert [outcome(Task(KILL, TRAIN, 0), looks, same).is_right for same in (True, False, None)] == [True, False, True]


def test_the_loading_of_the_model_is_a_part_of_the_recovery() -> None:
    looks = [Sample(0, Phase.LOAD, "a"), Sample(2, TRAIN, "a"), Sample(4, Phase.LOAD, "b"), Sample(9, TRAIN, "b")]
    looks += [Sample(11, Phase.LOAD, "c"), Sample(15, TRAIN, "c")]

    found = outcome(Task(KILL, TRAIN, 0), seen(looks, steps(2, 1, 1), steps(10, 2, 3), injected=3.0))

    assert (found.seconds_to_recover, found.seconds_loading) == (7.0, 5.0)


def test_only_a_wrong_try_keeps_what_the_job_said() -> None:
    status = ended("Complete", "Succeeded", "Killed")
    status["conditions"][0]["message"] = "Something."
    right = judged("trainer-sigkill", status)
    assert (right.said, judged("loss-not-a-number", status).said) == ("", "Something.")


def test_a_job_that_never_ends_is_wrong() -> None:
    assert not judged("operator-killed", {"state": "Running"}).ended_right


@pytest.mark.parametrize("name", SHORT)
def test_the_short_form_names_faults_of_the_table(name: str) -> None:
    assert name in BY_NAME


def test_names_of_faults_are_unique_and_names_of_jobs() -> None:
    assert len(BY_NAME) == len(FAULTS)
    assert all(name.replace("-", "").isalnum() and len(name) < 40 for name in BY_NAME)


def running(trained: str, *more: str) -> Object:
    conditions = [{"type": "Trained", "reason": trained}, *({"type": type, "reason": "Any"} for type in more)]
    return {"state": "Running", "conditions": conditions}


def test_the_phase_follows_from_state_conditions_and_log() -> None:
    log = "Answering 8 held-out rows with the tuned model.\n"
    assert phase_of({"state": "Validating"}, "") is Phase.PREFLIGHT
    assert phase_of(running("LoadingModel"), "") is Phase.LOAD
    assert phase_of(running("EvaluatingBase"), "") is Phase.BASE
    assert phase_of(running("Training"), "") is Phase.TRAIN
    assert phase_of(running("TrainingSucceeded"), "") is Phase.SAVE
    assert phase_of(running("TrainingSucceeded"), log) is Phase.TUNED
    assert phase_of(running("TrainingSucceeded", "Evaluated"), log) is Phase.PUBLISH
    assert [phase_of(status, log) for status in ({}, {"state": "Queued"}, {"state": "Complete"})] == [None] * 3
