"""Memory of a whole preflight, in a process of its own."""

import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.preflight import bundle_of, whole_words
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer

FEW, MANY = 6_000, 12_000
"""Numbers of rows. Preflight reads up to 10,000 answers at once to detect their kind, evenly spread over the training
rows. Of both numbers it reads about 5,400: all of the first, every second of the other."""
WORDS, LETTERS = 20, 100
"""Words of a question and of an answer, and letters of a word. Long words make the texts large (4 kB a row) and the
tokens few. Held texts then stand out from all else that grows with the rows. Near-duplicates of shorter texts are found
by their characters, which needs more memory."""
LARGEST_SHARE = 0.5
"""Most memory that may be added, as a share of the added texts. Measured on a busy machine: 0.11 to 0.14. It is 1.4
when all texts are held and 0.8 when only the answers are."""
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


@pytest.mark.thorough
def test_memory_does_not_grow_with_the_texts_of_the_rows(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tiny")
    save_model(tmp_path / "tiny")
    # The tiny model's own tokenizer makes nearly every character a token.
    whole_words(tmp_path / "model", tmp_path / "tiny", tmp_path)
    few, many = (peak_memory(rows, tmp_path / "model", tmp_path / f"{rows}") for rows in (FEW, MANY))
    assert many - few < LARGEST_SHARE * (MANY - FEW) * 2 * WORDS * LETTERS


def write_rows(path: Path, rows: int) -> None:
    rng = random.Random(0)
    pool = ["".join(rng.choices(string.ascii_lowercase, k=LETTERS)) for _ in range(1000)]
    with path.open("w") as file:
        for number in range(rows):
            question, answer = (" ".join(rng.choices(pool, k=WORDS)) for _ in range(2))
            file.write(json.dumps({"prompt": f"{question} {number}", "completion": answer}) + "\n")


def peak_memory(rows: int, model: Path, folder: Path) -> int:
    """The most bytes that preflight of `rows` rows had resident."""
    folder.mkdir()
    write_rows(folder / "rows.jsonl", rows)
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
