"""Near copies among many rows: ours (rensa's sketches, bands sorted on disk, verified) beside datasketch's and rensa's
own indexes.

    python -m benchmarks.near_duplicates 10000 100000 1000000 [--tools ours rensa datasketch]

Each measurement runs in a process of its own, so that its peak memory is its own. All are given the same sets of
shingles and make sketches of the same length with the same bands. Seconds are the process's CPU seconds, which other
work on the machine changes little. Recall: of the planted pairs whose exact Jaccard similarity is at least 0.8, the
share found. Wrong: of the planted pairs below it, the share that is joined all the same.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from time import process_time

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.copies.clusters import BANDS, Clusters, width_of_bands
from finetune_trainer.copies.near_duplicates import SEED, NearDuplicates, jaccard, shingles

THRESHOLD = 0.8
WIDTH = width_of_bands(THRESHOLD)
PLANTED = 0.05
"""Share of rows that are copies of an earlier row with a few changed words."""
WORDS = 30_000

Found = Callable[[int, int], bool]
"""Whether a row was found to be a copy of an earlier one."""


def rows(count: int) -> Iterator[tuple[str, int | None]]:
    """Texts of uneven length, 60 words in the median, with the row each is a copy of."""
    draw = np.random.default_rng(0)
    vocabulary = np.array([f"word{number}" for number in range(WORDS)])
    kept: list[tuple[int, NDArray[np.int64]]] = []
    for row in range(count):
        original = None
        if kept and draw.random() < PLANTED:
            original, words = kept[draw.integers(len(kept))]
            words = words.copy()
            words[draw.integers(len(words), size=draw.integers(1, 2 + len(words) // 40))] = draw.integers(WORDS)
        else:
            # Squared, so that some words are frequent.
            words = (draw.random(int(np.clip(draw.lognormal(4.1, 0.6), 5, 600))) ** 2 * WORDS).astype(np.int64)
            if row % 50 == 0:
                kept.append((row, words))
        yield " ".join(vocabulary[words]), original


def ours(texts: Iterator[str]) -> tuple[Mapping[str, float], Found]:
    """Measures the trainer's own code."""
    with tempfile.TemporaryDirectory() as folder:
        near, count, shingled = NearDuplicates(Path(folder), "rows"), 0, 0.0
        for text in texts:
            start = process_time()
            near.add(text)
            shingled += process_time() - start
            count += 1
        start = process_time()
        clusters = Clusters(count)
        near.join(clusters, THRESHOLD)
        seconds = {"shingles": shingled, "sketches and candidates": process_time() - start}
    return seconds, lambda first, second: clusters.root(first) == clusters.root(second)


def datasketch(texts: Iterator[str]) -> tuple[Mapping[str, float], Found]:
    """datasketch's MinHash and MinHashLSH as its documentation uses them: asked before each row is added."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=BANDS * WIDTH, params=(BANDS, WIDTH))
    seconds: Counter[str] = Counter()
    candidates: dict[int, set[int]] = {}
    for row, text in enumerate(texts):
        start = process_time()
        found = shingles(text).tolist()
        shingled = process_time()
        sketch = MinHash(num_perm=BANDS * WIDTH, hashfunc=int)
        sketch.update_batch(found)
        if others := index.query(sketch):
            candidates[row] = set(others)
        index.insert(row, sketch)
        seconds.update({"shingles": shingled - start, "sketches and candidates": process_time() - shingled})
    return seconds, lambda first, second: first in candidates.get(second, ())


def rensa(texts: Iterator[str]) -> tuple[Mapping[str, float], Found]:
    """rensa's RMinHash and RMinHashLSH in the same way, but for sketches made in batches, as it offers."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=BANDS * WIDTH, num_bands=BANDS)
    seconds: Counter[str] = Counter()
    candidates: dict[int, set[int]] = {}
    row = 0
    while batch := list(islice(texts, 512)):
        start = process_time()
        found = [[shingle.tobytes() for shingle in shingles(text)] for text in batch]
        shingled = process_time()
        for sketch in RMinHash.from_token_sets(found, num_perm=BANDS * WIDTH, seed=SEED):
            if others := index.query(sketch):
                candidates[row] = set(others)
            index.insert(row, sketch)
            row += 1
        seconds.update({"shingles": shingled - start, "sketches and candidates": process_time() - shingled})
    return seconds, lambda first, second: first in candidates.get(second, ())


TOOLS = {tool.__name__: tool for tool in (ours, rensa, datasketch)}


def measure(tool: str, count: int) -> dict[str, float]:
    """One tool on `count` rows, in this process."""
    planted: list[tuple[int, int, float]] = []

    def texts() -> Iterator[str]:
        originals: dict[int, str] = {}
        for row, (text, original) in enumerate(rows(count)):
            if row % 50 == 0 and original is None:
                originals[row] = text
            if original is not None:
                planted.append((original, row, jaccard(shingles(originals[original]), shingles(text))))
            yield text

    seconds, found = TOOLS[tool](texts())
    near = [found(first, second) for first, second, similarity in planted if similarity >= THRESHOLD]
    other = [found(first, second) for first, second, similarity in planted if similarity < THRESHOLD]
    return {
        **{f"rows/s {part}": count / spent for part, spent in seconds.items()},
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "near pairs": len(near),
        "recall": sum(near) / len(near),
        "wrong": sum(other) / max(1, len(other)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--here", action="store_true", help="measure in this process, and print JSON")
    wish = parser.parse_args()
    if wish.here:
        print(json.dumps(measure(wish.tools[0], wish.rows[0])))
        return
    for count in wish.rows:
        for tool in wish.tools:
            command = [sys.executable, __file__, str(count), "--tools", tool, "--here"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            print(f"{count:>9,} {tool:<10}", *(f"{name} {value:,.4g}" for name, value in figures.items()), sep="  ")


if __name__ == "__main__":
    main()
