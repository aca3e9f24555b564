"""python -m tests.chaos [--tries 20] [--fault NAME ...] [--record FILE] [--page FILE]

Runs every fault many times on the whole local cluster, and writes docs/reliability.md. A run that was stopped is
continued: its tries are in the record."""

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from devcluster.progress import console
from tests.chaos import trial
from tests.chaos.page import page
from tests.chaos.record import Record, Task
from tests.chaos.scene import Scene
from tests.chaos.table import FAULTS, Fault

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a try of this run did not end right."""
    options = _options(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)  # either takes the cluster down, also from `timeout`
    record = Record.open(options.record)
    tasks = record.to_do(_chosen(options.fault), options.tries)
    wrong = 0
    if tasks:
        with Scene(ROOT / "build" / "chaos") as scene:
            if not record.phase_seconds:
                record.phase_seconds = trial.measure_phases(scene)
                record.save()
            for index, task in enumerate(tasks):
                wrong += not _run(scene, record, task, tasks[index:])
                options.page.write_text(page(record))
    options.page.write_text(page(record))
    console.print(f"  {len(tasks)} tries, {wrong} did not end right; the figures are in {options.page}")
    return 1 if wrong else 0


def _run(scene: Scene, record: Record, task: Task, left: Sequence[Task]) -> bool:
    """Runs one try and records it. Returns whether it ended right. A try that could not be made is only told."""
    fault, phase = task.fault, task.phase
    title = f"{fault.name} in {phase}, try {task.seed}"
    console.print(f"  {title} ... {len(left)} left{_eta(record.seconds_left(left))}")
    try:
        found = trial.attempt(scene, fault, phase, task.seed, record.phase_seconds[phase])
    except Exception:
        console.print(f"  {title}: could not be made")
        traceback.print_exc()
        return False
    record.add(found)
    mark = "right" if found.is_right else "WRONG"
    recovery = "never" if found.seconds_to_recover is None else f"{found.seconds_to_recover:.0f} s"
    console.print(f"  {title}: {mark}, {found.state} {found.reasons}, recovered {recovery}. {found.said[:160]}")
    return found.is_right


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f", about {seconds / 60:.0f} minutes"


def _chosen(names: Sequence[str] | None) -> list[Fault]:
    return [fault for fault in FAULTS if not names or fault.name in names]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=20, help="tries of each fault (default: 20)")
    parser.add_argument("--fault", nargs="+", choices=[fault.name for fault in FAULTS], help="only these faults")
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "chaos.json", help="file with the tries")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md", help="page with the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
