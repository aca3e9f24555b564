"""python -m benchmarks.operator [--jobs 100 1000 10000] [--only CASE] [--json FILE] [--gate FILE]

Measures the operator on a real API server, etcd and controller-manager, without a node. Each case starts a new control
plane. Figures are printed and stored as soon as they are known."""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from benchmarks.operator.figures import Figure, Record, worse
from benchmarks.operator.latency import alone, neighbour
from benchmarks.operator.life import life
from benchmarks.operator.plane import FOLDER, Plane, plane
from benchmarks.operator.residents import ended, residents
from benchmarks.operator.storage import stored
from benchmarks.operator.throughput import throughput

ONCE: dict[str, Callable[[Plane], AsyncIterator[Figure]]] = {"life": life, "alone": alone}
"""Cases that do not depend on the number of jobs."""
BY_JOBS: dict[str, Callable[[Plane, int], AsyncIterator[Figure]]] = {
    "throughput": throughput,
    "residents": residents,
    "ended": ended,
    "stored": stored,
    "neighbour": lambda plane, jobs: neighbour(plane, jobs // 2),
}
Start = Callable[[Plane], AsyncIterator[Figure]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a figure is worse than the recorded one, or a case failed."""
    options = options_of(arguments)
    # Ctrl-C ends every process of a case. SIGTERM, for example of `timeout`, must do so as well.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    recorded = json.loads(options.gate.read_text()) if options.gate else {"cases": {}}
    record = Record(options.json)
    folder = options.folder.absolute()
    record.note(processor=platform.processor() or platform.machine(), cores=os.cpu_count(), python=sys.version)
    failed = [case for case, start in cases(options) if not asyncio.run(_measure(case, start, record, folder))]
    for case in failed:
        print(f"failed: {case}")
    sentences = worse(record.content["cases"], recorded["cases"])
    for sentence in sentences:
        print(f"worse than recorded: {sentence}")
    return 1 if failed or sentences else 0


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options. Exits with a message if they cannot be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000], help="numbers of jobs (default: 100 1000)")
    parser.add_argument("--only", choices=[*ONCE, *BY_JOBS], action="append", help="a case; may be repeated")
    parser.add_argument("--json", type=Path, help="file for the figures; it is complete after each figure")
    parser.add_argument("--gate", type=Path, help="file of an earlier --json; fail if a ratio is 20%% worse than there")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder for logs (default: build/bench-operator)")
    options = parser.parse_args(arguments)
    if min(options.jobs) < 2:
        parser.error("--jobs: a rate needs 2 jobs or more")
    if options.gate and not options.gate.is_file():
        parser.error(f"--gate: {options.gate} does not exist; write it with --json first")
    return options


def cases(options: argparse.Namespace) -> list[tuple[str, Start]]:
    """Returns the chosen cases by name, in the order in which they run."""
    chosen = options.only or [*ONCE, *BY_JOBS]
    once = [(name, case) for name, case in ONCE.items() if name in chosen]
    by_jobs = [
        (f"{name} {jobs}", lambda plane, case=case, jobs=jobs: case(plane, jobs))
        for jobs in options.jobs
        for name, case in BY_JOBS.items()
        if name in chosen
    ]
    return [*once, *by_jobs]


async def _measure(case: str, start: Start, record: Record, folder: Path) -> bool:
    """Runs a case on a new control plane. Returns whether it came to its end."""
    load = round(os.getloadavg()[0], 1)
    record.note(load={**record.content["machine"].get("load", {}), case: load})
    print(f"{case}: (load average before: {load})", flush=True)
    begun = time.monotonic()
    try:
        async with plane(folder) as place:
            async for figure in start(place):
                record.add(case, figure)
    except Exception as error:
        print(f"  failed: {_first(error)!r}", flush=True)
        return False
    print(f"  took {time.monotonic() - begun:.0f} s", flush=True)
    return True


def _first(error: BaseException) -> BaseException:
    """Returns the first error of a group of errors of concurrent requests."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
