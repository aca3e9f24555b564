"""Predicted memory against the resident memory of real training, on a CPU: the cases of benchmarks/sizing.py that are
done quickly. Each is measured in a process of its own."""

import pytest

from benchmarks.sizing import CASES, Case, compare

SHORT = Case("smollm2-135m", "LoRA", 64)
LONG = [case for case in CASES if case.name in ("smollm2-135m-lora", "smollm2-135m-full")]


@pytest.mark.thorough_for("*-256")
@pytest.mark.parametrize("case", [SHORT, *LONG], ids=lambda case: f"{case.name}-{case.tokens}")
def test_predicted_memory_is_within_15_percent_of_what_the_kernel_counts(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two threads would wait for each other wherever the machine does something else, the other tests for one.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    figure = compare(case)
    assert figure["peak"] > figure["loaded"] > figure["started"]
    assert abs(figure["error"]) < 0.15, figure
