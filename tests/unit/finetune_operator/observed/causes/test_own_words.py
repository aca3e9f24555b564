"""What a pod wrote in the status counts after it is gone, and never for the pod that takes its place."""

from datetime import timedelta

import pytest

from finetune_api.reasons import FAILURES, FailureReason
from finetune_api.status.job import ConditionType
from finetune_operator.observed.causes import own_words
from tests.unit.finetune_operator.worlds import NOW, fresh, saying

SECOND = timedelta(seconds=1)
REMEDY = FAILURES[FailureReason.LOSS_DIVERGED].remedy
FAILED = saying(fresh(), ConditionType.TRAINED, "False", "LossDiverged", f"Loss is NaN at step 7. {REMEDY}").status


def test_a_failure_is_read_back_without_its_remedy() -> None:
    word = own_words.failure_said(FAILED, own_words.ATTEMPT, NOW - SECOND)

    assert word == ("Loss is NaN at step 7.", FailureReason.LOSS_DIVERGED)


@pytest.mark.parametrize("since", [None, NOW + SECOND])
def test_a_failure_from_before_the_job_was_resumed_is_an_earlier_pods(since: object) -> None:
    assert own_words.failure_said(FAILED, own_words.ATTEMPT, since) is None  # type: ignore[arg-type]


def test_a_word_about_the_work_under_way_is_no_failure() -> None:
    loading = saying(fresh(), ConditionType.TRAINED, "False", "LoadingModel").status

    assert own_words.failure_said(loading, own_words.ATTEMPT, NOW) is None


def test_each_step_is_told_by_its_own_conditions() -> None:
    assert own_words.failure_said(FAILED, own_words.PREFLIGHT, NOW) is None


def test_what_an_earlier_pod_had_done_the_next_has_not() -> None:
    trained = saying(fresh(), ConditionType.TRAINED).status

    assert own_words.holds_since(trained, ConditionType.TRAINED, NOW)
    assert not own_words.holds_since(trained, ConditionType.TRAINED, NOW + SECOND)
    assert not own_words.holds_since(trained, ConditionType.EVALUATED, NOW)
