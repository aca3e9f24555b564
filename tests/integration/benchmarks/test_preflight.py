"""Memory of a whole preflight, in a process of its own, on rows as benchmarks/preflight.py makes them."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.preflight import bundle_of, whole_words, write_rows
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer

FEW, MANY = 10_000, 40_000
A_ROW = 500
"""Most bytes that another row may take: one whose text is held takes over 1,200. docs/benchmarks.md measures 105 over
millions of rows; over these few thousand it comes out as anything up to 350."""
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def test_memory_hardly_grows_with_the_rows(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tiny")
    save_model(tmp_path / "tiny")
    # The tiny model's own tokenizer, which cuts nearly every character apart, would take most of the time.
    whole_words(tmp_path / "model", tmp_path / "tiny", tmp_path)
    few, many = (peak_memory(rows, tmp_path / "model", tmp_path / f"{rows}") for rows in (FEW, MANY))
    assert (many - few) / (MANY - FEW) < A_ROW


def peak_memory(rows: int, model: Path, folder: Path) -> int:
    """The most bytes that preflight of so many rows had resident."""
    folder.mkdir()
    written = write_rows(folder / "rows.jsonl", rows, None)
    assert written == rows
    bundle = folder / "bundle.json"
    bundle.write_text(bundle_of(folder / "rows.jsonl", model, folder).model_dump_json(by_alias=True, exclude_none=True))
    # Started by a small process: what is started has the peak of what starts it, and pytest's is more than preflight's.
    command = [sys.executable, "-c", PEAK, sys.executable, "-m", "finetune_trainer", "preflight", str(bundle)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        # Threads come with memory of their own.
        env=os.environ | {"TMPDIR": str(folder), "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout)
