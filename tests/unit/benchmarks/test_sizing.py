"""benchmarks/sizing.py measures the memory that the kernel counts."""

from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState

from benchmarks.random_models import random_model
from benchmarks.sizing import Case, measure, resident, shape_of


def test_resident_memory_grows_by_what_is_touched() -> None:
    before = resident("VmRSS")
    held = np.ones(64 * 2**20, dtype=np.uint8)
    assert 60 * 2**20 < resident("VmRSS") - before < 80 * 2**20
    assert held[0]


def test_a_models_peak_is_measured_while_it_trains(tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    random_model("toy").save_pretrained(tmp_path)
    measured = measure(tmp_path, "LoRA", tokens=256)
    assert 0 < measured["started"] < measured["peak"]
    assert shape_of(tmp_path).layers == 2
    assert Case("toy", "LoRA", 256).name == "toy-lora"
