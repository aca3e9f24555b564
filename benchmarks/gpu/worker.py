"""The measuring process. It runs the cases that are not in the record yet, one after another."""

import importlib.util
import os
import sys
import time
from importlib.metadata import version

import torch

from benchmarks.gpu import BROKEN
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.plan import CASES, Case
from benchmarks.gpu.record import Record
from benchmarks.gpu.sizes import Sizes

NO_GPU = 2
"""Exit code of a process that finds no GPU."""


def work(record: Record, device: str, sizes: Sizes, deadline: float) -> int:
    """Runs the cases that fit before `deadline` (monotonic clock).

    Returns 0, NO_GPU if there is no GPU, or BROKEN if a new process must continue."""
    if device == "cuda" and not torch.cuda.is_available():
        print(
            "PyTorch finds no GPU. Run it on a GPU machine, or test only the script with: --device cpu --model toy",
            file=sys.stderr,
        )
        return NO_GPU
    if device == "cpu":
        torch.set_num_threads(1)  # models this small only wait for a second thread
    bench = Bench(torch.device(device), sizes, record)
    if "device" not in record.content:
        record.note(**environment(bench), planned=[case.name for case in CASES])
    four_bit = importlib.util.find_spec("bitsandbytes") is not None
    for case in CASES:
        left = deadline - time.monotonic()
        if record.has(case.name):
            continue
        if case.needs_bitsandbytes and not four_bit:
            record.leave_out(case.name, "bitsandbytes is not installed")
        elif left < case.seconds:
            record.leave_out(case.name, f"it needs up to {case.seconds:.0f} s, and only {left:.0f} s are left")
        elif not run(bench, record, case):
            return BROKEN
    return 0


def run(bench: Bench, record: Record, case: Case) -> bool:
    """Runs one case. Returns whether this process can go on."""
    print(f"{case.name} (up to {case.seconds:.0f} s)", flush=True)
    record.begin(case.name, case.seconds)
    bench.deadline = time.monotonic() + case.seconds
    error, broken = "", False
    try:
        for figure in case.measure(bench):
            record.add(case.name, figure)
    except Exception as failure:
        error = f"{type(failure).__name__}: {next(iter(str(failure).splitlines()), '')[:500]}"
        broken = type(failure).__name__ == "AcceleratorError"  # every later call fails too
    record.end(case.name, error)
    if error and not broken:
        bench.forget()
    return not broken


def environment(bench: Bench) -> dict[str, object]:
    """Returns the device and the versions on which the figures depend."""
    cuda = bench.device.type == "cuda"
    found = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory": torch.cuda.mem_get_info()[1] if cuda else 0,
        "cuda": torch.version.cuda if cuda else None,
        "processors": len(os.sched_getaffinity(0)),
    }
    named = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "triton")
    found |= {name: version(name) for name in named if importlib.util.find_spec(name)}
    print(", ".join(f"{name} {value}" for name, value in found.items() if value), flush=True)
    return found
