"""The benchmark of several processes compares their speeds, and runs a turn with real processes."""

from argparse import Namespace

import pytest

from benchmarks import ranks
from benchmarks.ranks import ONE, THREADS, TWO, main, table

OPTIONS = Namespace(model="toy", method="LoRA", tokens=16, turns=1)


def test_the_table_gives_each_speed_as_a_multiple_of_that_of_one_process() -> None:
    text = table({ONE: 100.0, TWO: 170.4, THREADS: 150.0}, OPTIONS)
    assert "toy, LoRA, steps of 4 rows of 16 tokens; medians of 1 turns" in text
    assert f"| {TWO} | 170 | 1.70 |" in text
    assert f"| {THREADS} | 150 | 1.50 |" in text


@pytest.mark.thorough
def test_a_turn_of_two_processes_measures_a_training() -> None:
    arguments = ["--model", "toy", "--tokens", "16", "--steps", "1", "--turns", "1"]
    assert ranks._turn(*ranks.CONTENDERS[TWO], arguments) > 0


@pytest.mark.parametrize(("speed", "code"), [(140.0, 1), (150.0, 0)])
def test_the_exit_code_says_whether_two_processes_are_fast_enough(
    speed: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {ranks.CONTENDERS[ONE]: 100.0, ranks.CONTENDERS[TWO]: speed, ranks.CONTENDERS[THREADS]: 150.0}
    monkeypatch.setattr(ranks, "_turn", lambda number, threads, arguments: speeds[number, threads])
    assert main(["--model", "toy"]) == code
    assert f"| {TWO} | {speed:.0f} |" in capsys.readouterr().out
