"""Measures what interruptions cost, and whether they change the results.

    python -m benchmarks.resume [--kills 300] [--minutes 20] [--goodput]        # make bench-resume

`--kills`: random kills over short runs of six jobs. Each run's weights, losses and token counts are compared with those
of the uninterrupted run. `--minutes`: no run begins later, and the table has fewer kills. `--goodput`: one long job
with SIGTERM every two minutes, and one with SIGKILL after ten (20 minutes)."""

import argparse
import math
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.resume.goodput import goodput
from benchmarks.resume.histories import History, Kill, live, prepare
from benchmarks.resume.job import SPECS, bundle_of, write_inputs
from benchmarks.resume.serve import Server
from finetune_trainer.pod.progress import Progress

SEED = 11
MOST_KILLS = 4
"""Most kills of one run."""


@dataclass
class Outcome:
    """What the kills of one job did."""

    runs: int = 0
    equal: int = 0
    """Runs whose results are those of the uninterrupted run."""
    kills: dict[signal.Signals, int] = field(default_factory=dict)
    lost: dict[signal.Signals, list[int]] = field(default_factory=dict)
    """Steps that were taken again after each kill, where steps followed."""
    stopping: list[float] = field(default_factory=list)
    """Seconds from SIGTERM to the end of the process."""

    def add(self, history: History, whole: History) -> None:
        """Counts a run."""
        self.runs += 1
        self.equal += history.results == whole.results
        for ended in history.attempts:
            if ended.kill and ended.stopping is not None:
                self.kills[ended.kill.signal] = self.kills.get(ended.kill.signal, 0) + 1
                if ended.kill.signal is signal.SIGTERM:
                    self.stopping.append(ended.stopping)
        for ended, steps in history.repeated:
            if ended.kill:
                self.lost.setdefault(ended.kill.signal, []).append(steps)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="kills in all jobs together")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins later")
    parser.add_argument("--goodput", action="store_true", help="measures the goodput too, 20 minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.kills:
            print(table(kill(options.kills, Path(folder) / "kills", 60 * options.minutes)), flush=True)
        if options.goodput:
            for line in goodput(Path(folder) / "goodput"):
                print(line, flush=True)


def kill(kills: int, folder: Path, seconds: float) -> dict[str, Outcome]:
    """Kills runs of each job until all jobs together have so many kills, or so many seconds have passed."""
    deadline = time.monotonic() + seconds
    write_inputs(folder)
    outcomes = {name: Outcome() for name in SPECS}
    progress = Progress("Killing", "kills", kills)
    with Server() as server:
        jobs = {}
        for name, parts in SPECS.items():
            bundle = bundle_of(folder, parts)
            prepared = prepare(bundle, folder / name)
            jobs[name] = bundle, prepared, live(server, bundle, prepared, folder / f"{name}-whole", iter(()))
        number = 0
        while sum(sum(outcome.kills.values()) for outcome in outcomes.values()) < kills and time.monotonic() < deadline:
            name = list(SPECS)[number % len(SPECS)]
            bundle, prepared, whole = jobs[name]
            drawn = random_kills(random.Random(f"{SEED}/{number}"), whole.attempts[0].seconds)
            history = live(server, bundle, prepared, folder / f"{name}-{number}", drawn)
            outcomes[name].add(history, whole)
            progress.advance(sum(ended.stopping is not None for ended in history.attempts))
            number += 1
    return outcomes


def random_kills(draw: random.Random, seconds: float) -> Iterator[Kill]:
    """Yields up to four kills, each at any moment of an attempt of `seconds` seconds."""
    for _ in range(draw.randint(1, MOST_KILLS)):
        yield Kill(draw.choice((signal.SIGTERM, signal.SIGKILL)), delay=draw.uniform(0, seconds))


def table(outcomes: dict[str, Outcome]) -> str:
    """Returns the results as Markdown."""
    lines = [
        "| job | runs | results equal | SIGTERM | steps lost | longest end | SIGKILL | steps lost, mean | most |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, outcome in outcomes.items():
        terms, killed = (outcome.lost.get(number, []) for number in (signal.SIGTERM, signal.SIGKILL))
        lines.append(
            f"| {name} | {outcome.runs} | {outcome.equal} | {outcome.kills.get(signal.SIGTERM, 0)} | {sum(terms)} "
            f"| {max(outcome.stopping, default=0):.1f} s | {outcome.kills.get(signal.SIGKILL, 0)} "
            f"| {sum(killed) / max(1, len(killed)):.1f} | {max(killed, default=0)} |"
        )
    runs, equal = (sum(getattr(outcome, what) for outcome in outcomes.values()) for what in ("runs", "equal"))
    kills = sum(sum(outcome.kills.values()) for outcome in outcomes.values())
    return "\n".join([*lines, "", f"{kills} kills in {runs} runs; the results of {equal} runs are bit for bit equal."])


if __name__ == "__main__":
    main()
