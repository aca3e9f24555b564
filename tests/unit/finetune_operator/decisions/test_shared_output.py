"""Of several jobs with one output, only one runs."""

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.world import Rival
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, validated

LATER, EARLIER = NOW, NOW - timedelta(hours=1)


@pytest.mark.parametrize(
    ("rival", "starts"),
    [
        (Rival("other/mails", "b", EARLIER, begun=False), False),
        (Rival("other/mails", "b", LATER, begun=False), True),
        (Rival("other/mails", "b", LATER, begun=True), False),
    ],
)
def test_of_two_jobs_with_one_output_only_the_first_asks_for_a_gpu(rival: Rival, starts: bool) -> None:
    plan = reconcile(validated(rivals=(rival,)), NOW)

    assert ("Job" in kinds(plan)) is starts
    if not starts:
        assert (state(plan), reason(plan)) == ("Failed", "OutputOccupied")
        assert message(plan).startswith(
            "spec.output.uri: the unfinished job other/mails also writes to s3://results/run and was first."
        )


def test_an_output_inside_another_jobs_is_named() -> None:
    theirs = "s3://results/run/second"
    plan = reconcile(validated(rivals=(Rival("other/mails", "b", EARLIER, begun=False, overlapping=theirs),)), NOW)

    assert (state(plan), reason(plan)) == ("Failed", "OutputOccupied")
    assert message(plan).startswith(
        f"spec.output.uri: the unfinished job other/mails writes to {theirs} and was first. {theirs} is inside "
        "s3://results/run, so each job could overwrite results of the other."
    )


def test_two_jobs_made_in_the_same_second_do_not_both_give_way() -> None:
    mine = validated()
    theirs = Rival("other/mails", "b", mine.created, begun=False)
    plans = [
        reconcile(validated(rivals=(theirs,)), NOW),
        reconcile(validated(uid="b", rivals=(replace(theirs, uid=mine.uid),)), NOW),
    ]

    assert sorted("Job" in kinds(plan) for plan in plans) == [False, True]
