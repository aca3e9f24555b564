"""When a checkpoint is written."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.checkpoints.pace import MOST_COST, Pace


def due(step: int, pace: Pace, **known: float) -> bool:
    facts = {"last": 0, "passed": 1e6, "waited": 0.0, "spent": 0.0, "next_cost": 0.0} | known
    return pace.due(step, last=int(facts.pop("last")), **facts)


def test_the_default_is_a_fifth_of_the_run_or_a_minute() -> None:
    pace = Pace(100, None)
    assert [step for step in range(1, 101) if due(step, pace, last=step // 20 * 20 if step % 20 else step - 20)] == [
        20,
        40,
        60,
        80,
    ], "the results follow the last step"
    assert not due(5, pace, waited=59)
    assert due(5, pace, waited=60)


def test_every_counts_steps_of_the_run_and_not_of_the_attempt() -> None:
    pace = Pace(100, 10)
    assert [step for step in range(1, 31) if due(step, pace, last=(step - 1) // 10 * 10)] == [10, 20, 30]
    assert due(20, pace, last=13), "an attempt that began with step 13"
    assert due(21, pace, last=13), "step 20 was left out because an upload was under way"
    assert not due(12, pace, last=11)
    assert not due(100, pace, last=90)


def test_every_holds_whatever_it_costs() -> None:
    assert due(10, Pace(100, 10), passed=1, spent=5, next_cost=5)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.001, 30)), min_size=1, max_size=300))
def test_by_default_checkpoints_never_cost_more_than_expected_of_the_time(steps: list[tuple[float, float]]) -> None:
    pace, passed, last, last_time, spent = Pace(len(steps) + 1, None), 0.0, 0, 0.0, 0.0
    for step, (seconds, cost) in enumerate(steps, 1):
        passed += seconds
        if pace.due(step, last=last, passed=passed, waited=passed - last_time, spent=spent, next_cost=cost):
            spent, last, last_time = spent + cost, step, passed
        assert spent <= MOST_COST * passed + 1e-9
