"""The training benchmark reads rows and compares turns."""

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.trainer import CEILING, OURS, PACKED, TRL, Turn, read_pairs, seeded_pairs, table

END = {"memory": 2**30, "before": 1.5, "after": 1.25, "trained": 4000}


def test_the_table_compares_medians_by_the_clock_and_by_cpu_time() -> None:
    speeds = {OURS: 300, TRL: 100, PACKED: 150, CEILING: 600}
    turns = {name: [Turn(speed * 2, speed, 2.0, 4.0)] * 2 + [Turn(1, 1, 9.0, 9.0)] for name, speed in speeds.items()}
    options = Namespace(threads=2, data=Path("rows.jsonl"), rounds=3, batch=8, micro_batch_tokens=512)
    text = table(turns, dict.fromkeys(speeds, END), options)
    assert "| finetune-operator | 300 | 150 | 150 | 50% | 1.00 GiB | 1.5000 | 1.2500 after 4,000 tokens |" in text
    assert "| ceiling | 600 |" in text
    assert "3.00 times TRL's defaults, 2.00 times TRL packed (by CPU time 3.00 and 2.00)" in text
    assert "rows.jsonl rows" in text


def test_rows_are_read_by_either_pair_of_columns(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "2 + 2?", "answer": "4"}\n{"prompt": "3 + 3?", "completion": "6"}\n')
    assert read_pairs(data) == [("2 + 2?", "4"), ("3 + 3?", "6")]


def test_a_row_with_other_columns_is_named(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "2 + 2?", "answer": "4"}\n{"question": "3 + 3?"}\n')
    with pytest.raises(SystemExit, match=r"rows\.jsonl:2 has neither"):
        read_pairs(data)


def test_seeded_rows_are_the_same_each_time_and_uneven() -> None:
    pairs = seeded_pairs(100)
    assert pairs == seeded_pairs(100)
    lengths = [len(f"{question} {answer}".split()) for question, answer in pairs]
    assert max(lengths) > 2.5 * min(lengths)
