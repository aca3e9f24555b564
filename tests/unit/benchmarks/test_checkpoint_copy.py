"""The measurement of the copy of an adapter, with one layer instead of 32."""

from pathlib import Path

import pytest

from benchmarks import checkpoint_copy
from benchmarks.checkpoint_copy import Figures, measure, table


def test_each_checkpoint_is_measured_and_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_copy, "LAYERS", 1)
    monkeypatch.setattr(checkpoint_copy, "EVERY", 2)
    figures = measure(tmp_path, 3)
    assert len(figures.waits) == 3
    assert 3 * 4 * 1_310_720 < figures.size < 3.1 * 4 * 1_310_720, "fp32, with both moments"
    assert figures.cpu_seconds > 0
    assert len(list(tmp_path.glob("checkpoints/step-*/manifest.json"))) == 2, "the older one is deleted"


def test_the_first_wait_is_told_apart() -> None:
    last = table(Figures(2**29, [0.3, 0.05, 0.08, 0.06], 1.0, 1.05)).splitlines()[-1]
    assert last == "| 300 ms | 80 ms | 60 ms | 1.00 s | 1.05 copies |"
