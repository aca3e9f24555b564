"""python -m tests.chaos [--tries 20] [--fault NAME ...] [--phase NAME ...] [--side-by-side 7] [--minutes N]
    [--record FILE] [--page FILE]

Runs every fault many times on the whole local cluster, and writes docs/reliability.md. A run that was stopped is
continued: its tries are in the record."""

import argparse
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from devcluster.progress import console
from tests.chaos import trial
from tests.chaos.figures.judge import Outcome
from tests.chaos.figures.page import page
from tests.chaos.figures.record import Record
from tests.chaos.phases import Phase
from tests.chaos.run import Run
from tests.chaos.scene import LANES, Scene
from tests.chaos.table import FAULTS, Fault, Task

ROOT = Path(__file__).parents[2]
RECORD, PAGE = Path(__file__).parent / "record.json", ROOT / "docs" / "reliability.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a try of this run did not end right."""
    options = _options(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)  # either takes the cluster down, also from `timeout`
    deadline = time.monotonic() + 60 * options.minutes
    record = Record.open(options.record, _commit(), options.side_by_side)
    tally = Tally(record, options.page, record.to_do(_chosen(options.fault), options.tries, options.phase))
    if tally.left:
        with Scene(ROOT / "build" / "chaos", options.side_by_side) as scene:
            basis = trial.undisturbed(scene.lanes)
            record.phase_seconds[options.side_by_side] = basis.seconds
            record.save()
            Run(scene, basis, tally.tell, deadline).make(list(tally.left))
    options.page.write_text(page(record))
    console.print(f"  {tally.made} tries, {tally.wrong} did not end right; the figures are in {options.page}")
    return 1 if tally.wrong else 0


class Tally:
    """Records each try, and says what it shows. `left`: the tries still to make."""

    def __init__(self, record: Record, page: Path, left: Sequence[Task]) -> None:
        self.left, self.made, self.wrong = list(left), 0, 0
        self._record, self._page, self._lock = record, page, Lock()

    def tell(self, task: Task, found: Outcome | Exception) -> None:
        """Takes what a try shows. A try that could not be made is only told."""
        title = f"{task.fault.name} in {task.phase}, try {task.seed}"
        with self._lock:
            self.left.remove(task)
            if isinstance(found, Exception):
                self.wrong += 1
                console.print(f"  {title}: could not be made")
                traceback.print_exception(found)
                return
            self.made += 1
            self.wrong += not found.is_right
            self._record.add(found)
            self._page.write_text(page(self._record))
            console.print(f"  {title}: {_sentence(found)} {len(self.left)} left")


def _sentence(found: Outcome) -> str:
    recovery = "never" if found.seconds_to_recover is None else f"{found.seconds_to_recover:.0f} s"
    parts = f"{found.state} {found.reasons}, in {found.phase}, recovered {recovery} of {found.seconds:.0f} s"
    return f"right, {parts}." if found.is_right else f"WRONG, {parts}. {found}"


def _commit() -> str:
    """Returns the short commit of the code; with a mark if the code is not as it was committed."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    written = [f":(exclude){path.relative_to(ROOT)}" for path in (RECORD, PAGE)]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *written], cwd=ROOT).returncode
    return commit.stdout.strip() + ("-dirty" if changed else "")


def _chosen(names: Sequence[str] | None) -> list[Fault]:
    return [fault for fault in FAULTS if not names or fault.name in names]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=20, help="tries of each fault (default: 20)")
    parser.add_argument("--fault", nargs="+", choices=[fault.name for fault in FAULTS], help="only these faults")
    phases = tuple(Phase)
    parser.add_argument("--phase", nargs="+", type=Phase, choices=phases, default=phases, help="only in these phases")
    parser.add_argument("--side-by-side", type=int, default=LANES, help=f"tries at the same time (default: {LANES})")
    parser.add_argument("--record", type=Path, default=RECORD, help="file with the tries")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no try begins later")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
