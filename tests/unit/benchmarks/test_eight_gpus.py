"""The calculation for eight GPUs: it is of the real models, and the page of benchmarks has its figures."""

from pathlib import Path

import pytest

from benchmarks.eight_gpus import CASES, GPUS, Case, main, steps

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"
SMALL, LARGE = CASES


@pytest.mark.parametrize(("case", "parameters"), [(SMALL, 8_030_261_248), (LARGE, 70_553_706_496)])
def test_the_models_have_the_parameters_of_llama_3_1(case: Case, parameters: int) -> None:
    assert case.shape().parameters == parameters


@pytest.mark.parametrize("case", CASES)
def test_the_page_has_the_figures_that_are_printed(case: Case) -> None:
    (section,) = [part for part in PAGE.read_text().split("\n## ") if part.startswith("Eight GPUs")]
    for what, value in steps(case):
        number = value.partition(" ")[0]
        if number[0].isdigit():
            assert number in section, what


def test_eight_gpus_are_at_most_eight_times_as_fast_as_one() -> None:
    told = dict(steps(SMALL))
    assert 0.9 * GPUS < float(told[f"speed of {GPUS} GPUs over that of one"]) <= GPUS
    assert dict(steps(LARGE))[f"speed of {GPUS} GPUs over that of one"] == "does not fit one"


def test_the_output_says_that_nothing_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    assert capsys.readouterr().out.count("(calculated, not measured)") == 2
