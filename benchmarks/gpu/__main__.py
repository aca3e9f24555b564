"""python -m benchmarks.gpu [--seconds N] [--json FILE]: all cases in at most nine minutes.

Needs PyTorch, Transformers, PEFT, Accelerate, pydantic, NumPy and safetensors; bitsandbytes for QLoRA and 8-bit
moments. Needs no network. `--device cpu --model toy` runs all cases in a minute to test the script."""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import BROKEN
from benchmarks.gpu.record import Record
from benchmarks.gpu.sizes import SIZES

NEEDED = ("torch", "transformers", "peft", "accelerate", "pydantic", "numpy", "safetensors")
PATIENCE = 2
"""A case is ended after this many times its planned seconds."""
MARGIN = 10
"""Seconds before the time limit at which the running case is ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a case failed or a figure is wrong, and 2 if nothing can be measured."""
    options = _options(arguments)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"Packages are missing. Install them first: {', '.join(missing)}", file=sys.stderr)
        return 2
    if options.until:
        from benchmarks.gpu.worker import work

        return work(Record(options.json), options.device, SIZES[options.model], options.until)
    with tempfile.TemporaryDirectory() as folder:
        path = options.json or Path(folder, "gpu.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return watch(path, options) or _summary(Record(path))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", choices=SIZES, default="8b")
    parser.add_argument(
        "--seconds",
        type=float,
        default=540,
        help="time limit for all cases in seconds, including the start (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="file for the figures; it is complete after each figure")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # in the process that measures
    return parser.parse_args(arguments)


def watch(path: Path, options: argparse.Namespace) -> int:
    """Has processes of its own measure until all cases are done or the time is up. Returns the exit code of one that
    could not go on."""
    deadline = time.monotonic() + options.seconds
    while time.monotonic() < deadline - MARGIN:
        command = [sys.executable, "-m", "benchmarks.gpu", f"--device={options.device}", f"--model={options.model}"]
        # What Transformers and PEFT say of each other's names is nothing to act on here.
        quiet = os.environ | {"PYTHONWARNINGS": "ignore::FutureWarning"}
        quiet.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as the trainer does
        worker = subprocess.Popen([*command, f"--json={path}", f"--until={deadline - MARGIN}"], env=quiet)
        ended = _wait(worker, path, deadline - MARGIN)
        record = Record(path)
        if running := record.running():
            record.end(running[0], ended or f"its process ended with exit code {worker.returncode}")
        elif worker.returncode != BROKEN:
            return 0 if ended else worker.returncode
    return 0


def _wait(worker: "subprocess.Popen[bytes]", path: Path, deadline: float) -> str:
    """Waits until `worker` ends, or ends it. Returns the reason if it was ended."""
    try:
        while worker.poll() is None:
            _, times = Record(path).running() or ("", 0.0)
            if time.monotonic() > deadline:
                return "the time limit was reached"
            if times > PATIENCE:
                return f"it had not ended after {times:.1f} times the seconds it was given"
            time.sleep(0.2)
        return ""
    finally:
        worker.kill()
        worker.wait()


def _summary(record: Record) -> int:
    cases = record.content["cases"]
    for name in record.content.get("planned", []):
        if name not in cases:
            record.leave_out(name, "the time limit was reached")
    failed = [name for name, case in cases.items() if "error" in case]
    wrong = [f"{name}: {f['what']}" for name, case in cases.items() for f in case["figures"] if f["right"] is False]
    for what, names in (("failed", failed), ("wrong", wrong)):
        if names:
            print(f"{what}: {', '.join(names)}")
    return 1 if failed or wrong or not cases else 0


if __name__ == "__main__":
    # As an exception, so that the process that measures is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
