"""The command line of the operator's benchmark."""

import pytest

from benchmarks.operator.__main__ import cases, options_of


def test_cases_without_residents_run_once_and_the_others_for_each_number_of_jobs() -> None:
    names = [name for name, _ in cases(options_of(["--jobs", "100", "1000"]))]
    by_jobs = ("throughput", "residents", "ended", "stored", "neighbour")
    assert names == ["life", "alone", *(f"{case} {jobs}" for jobs in (100, 1000) for case in by_jobs)]


def test_a_case_can_be_chosen() -> None:
    chosen = cases(options_of(["--only", "ended", "--only", "life", "--jobs", "10000"]))
    assert [name for name, _ in chosen] == ["life", "ended 10000"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--jobs", "1"], "2 jobs or more"), (["--gate", "/missing.json"], "write it with --json first")],
)
def test_options_that_cannot_be_measured_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options_of(arguments)
    assert message in capsys.readouterr().err
