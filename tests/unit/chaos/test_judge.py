"""What a try shows follows from the looks at its job."""

import pytest

from tests.chaos.figures.judge import Outcome, Sample, outcome, seconds_per_step, seconds_to_recover, steps_repeated
from tests.chaos.phases import Phase, phase_of
from tests.chaos.table import FAULTS, SHORT, Task
from tests.integration.kube import Object

TRAIN = Phase.TRAIN
BY_NAME = {fault.name: fault for fault in FAULTS}


def steps(*looks: tuple[float, int, int, int]) -> list[Sample]:
    """Looks of a training: seconds, attempt, step, resumed from."""
    return [Sample(seconds, TRAIN, attempt, step, resumed) for seconds, attempt, step, resumed in looks]


def test_steps_are_repeated_from_where_the_next_attempt_began() -> None:
    assert steps_repeated(steps((0, 1, 10, 0), (1, 1, 50, 0), (9, 2, 41, 40), (10, 2, 60, 40))) == 10


def test_all_steps_are_repeated_if_nothing_was_resumed() -> None:
    assert steps_repeated(steps((0, 1, 50, 0), (9, 2, 0, 0), (10, 2, 60, 0))) == 50


def test_an_attempt_that_says_where_it_began_only_later_repeats_nothing_before_that() -> None:
    assert steps_repeated(steps((0, 1, 50, 0), (9, 2, 0, 0), (10, 2, 40, 40), (11, 2, 60, 40))) == 10


def test_an_attempt_that_made_no_step_repeated_none() -> None:
    assert steps_repeated(steps((0, 1, 50, 0), (9, 2, 0, 0), (20, 3, 50, 50), (21, 3, 60, 50))) == 0
    assert steps_repeated(steps((0, 1, 50, 0), (9, 2, 20, 0), (20, 3, 50, 50))) == 20


def test_a_second_pod_of_the_same_attempt_counts_as_well() -> None:
    assert steps_repeated(steps((0, 1, 50, 0), (9, 1, 0, 0), (10, 1, 60, 0))) == 50


def test_nothing_is_repeated_where_the_attempt_went_on_or_resumed_at_its_last_step() -> None:
    assert steps_repeated(steps((0, 1, 10, 0), (1, 1, 50, 0), (9, 1, 60, 0))) == 0
    assert steps_repeated(steps((0, 1, 50, 0), (9, 2, 50, 50), (10, 2, 60, 50))) == 0


def test_a_step_takes_as_long_as_on_average_until_the_last_report_of_each_pod() -> None:
    looks = steps((5, 1, 0, 0), (6, 1, 1, 0), (15, 1, 1, 0), (16, 1, 11, 0), (40, 1, 11, 0))
    looks += steps((60, 2, 0, 0), (61, 2, 12, 11), (71, 2, 22, 11), (99, 2, 22, 11))
    assert seconds_per_step(looks) == pytest.approx(1.0)


def test_a_pod_that_took_no_step_shows_no_duration() -> None:
    assert seconds_per_step(steps((0, 1, 0, 0), (5, 1, 0, 0), (90, 2, 10, 10))) == 0.0


def test_a_job_has_recovered_once_it_is_further_than_before() -> None:
    looks = steps((0, 1, 50, 0), (5, 2, 40, 40), (7, 2, 50, 40), (8, 2, 51, 40))
    assert seconds_to_recover(looks, injected=1.0) == 7.0


def test_a_job_has_recovered_in_a_later_phase_too_but_not_in_an_earlier_one() -> None:
    looks = [Sample(0, Phase.BASE), Sample(3, Phase.LOAD), Sample(4, None), Sample(6, Phase.TRAIN)]
    assert seconds_to_recover(looks, injected=1.0) == 5.0
    assert seconds_to_recover(looks[:3], injected=1.0) is None


def ended(state: str, ready: str, *reasons: str) -> Object:
    attempts = [{"number": i + 1, "reason": reason} for i, reason in enumerate((*reasons, "Succeeded"))]
    return {"state": state, "conditions": [{"type": "Ready", "reason": ready, "message": ""}], "attempts": attempts}


def judged(name: str, status: Object) -> Outcome:
    return outcome(Task(BY_NAME[name], TRAIN, 0), steps((0, 1, 0, 0)), 0.0, status)


def test_a_fault_that_needs_a_retry_is_right_if_the_job_completes_and_the_attempt_says_so() -> None:
    assert judged("trainer-sigkill", ended("Complete", "Succeeded", "Killed")).is_right
    assert not judged("trainer-sigkill", ended("Complete", "Succeeded", "TrainerCrashed")).right_reason
    assert not judged("trainer-sigkill", ended("Failed", "Killed", "Killed")).ended_right


def test_a_fault_that_no_retry_can_mend_is_right_if_the_job_fails_for_its_reason() -> None:
    assert judged("loss-not-a-number", ended("Failed", "LossDiverged", "LossDiverged")).is_right
    assert not judged("loss-not-a-number", ended("Complete", "Succeeded")).ended_right
    assert not judged("loss-not-a-number", ended("Failed", "TrainerCrashed", "LossDiverged")).right_reason


def test_more_lost_work_than_the_fault_allows_is_wrong() -> None:
    looks = steps((0, 1, 0, 0), (10, 1, 100, 0), (20, 2, 0, 0), (40, 2, 200, 0))
    stopped, killed = (Task(BY_NAME[name], TRAIN, 0) for name in ("trainer-sigterm", "trainer-sigkill"))
    lost = outcome(stopped, looks, 10.0, ended("Complete", "Succeeded", "Preempted"))
    assert (lost.steps_repeated, lost.little_lost, lost.is_right) == (100, False, False)
    assert outcome(killed, looks, 10.0, ended("Complete", "Succeeded", "Killed")).is_right


def test_a_preflight_that_was_tried_again_has_a_reason_too() -> None:
    status = {**ended("Complete", "Succeeded"), "preflights": [{"number": 1, "reason": "TrainerCrashed"}]}
    assert not judged("trainer-sigkill", status).right_reason


def test_the_phase_told_is_the_one_in_which_the_fault_came() -> None:
    looks = [Sample(0, Phase.PREFLIGHT), Sample(3, None), Sample(4, Phase.LOAD), Sample(9, TRAIN)]
    told = [
        outcome(Task(BY_NAME["trainer-sigkill"], Phase.PREFLIGHT, 0), looks, injected, {}).phase
        for injected in (2, 3.5, 5)
    ]
    assert told == [Phase.PREFLIGHT, Phase.PREFLIGHT, Phase.LOAD]


def test_other_weights_than_without_a_fault_are_wrong_and_none_are_not_compared() -> None:
    task, looks = Task(BY_NAME["trainer-sigkill"], TRAIN, 0), steps((0, 1, 0, 0))
    status = ended("Complete", "Succeeded", "Killed")
    assert [outcome(task, looks, 0.0, status, same).is_right for same in (True, False, None)] == [True, False, True]


def test_the_loading_of_the_model_is_a_part_of_the_recovery() -> None:
    looks = [Sample(0, Phase.LOAD), Sample(2, TRAIN, 1, 5), Sample(4, Phase.LOAD, 2), Sample(9, TRAIN, 2, 5, 5)]
    looks += [Sample(10, TRAIN, 2, 6, 5), Sample(11, Phase.LOAD, 3), Sample(15, TRAIN, 3, 6, 6)]

    found = outcome(Task(BY_NAME["trainer-sigkill"], TRAIN, 0), looks, 3.0, {})

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
