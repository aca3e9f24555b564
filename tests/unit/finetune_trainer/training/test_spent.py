"""GPU hours and cost of a training whose attempts had other machines."""

import pytest

from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.run_state import RunState
from finetune_trainer.training.spent import Machine, Spent

HOUR = 3600.0


def test_the_hours_of_an_earlier_job_are_those_of_its_own_gpus_at_their_price() -> None:
    resumed = RunState(StepLayout(1, False)).after(10 * HOUR, Machine(1, "2.50"))
    assert resumed.held_before == 10 * HOUR
    spent = resumed.spent(HOUR, Machine(4, "0.80"))
    assert (spent.gpu_seconds, spent.cost) == (14 * HOUR, pytest.approx(28.20))


@pytest.mark.parametrize(
    ("machines", "cost"),
    [
        ([Machine(2, None)], None),
        ([Machine(1, None), Machine(1, "2.50")], None),
        ([Machine(1, "2.50"), Machine(1, None)], None),
        ([Machine(), Machine(1, "2.50")], 2.5),
        ([Machine(1, "2.50"), Machine()], 2.5),
        ([Machine(1, "0.00")], 0.0),
    ],
)
def test_a_cost_is_known_if_all_gpus_had_a_price(machines: list[Machine], cost: float | None) -> None:
    spent = Spent()
    for machine in machines:
        spent = spent.more(HOUR, machine)
    assert spent == Spent(sum(machine.gpus for machine in machines) * HOUR, cost)
