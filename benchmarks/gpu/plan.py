"""The cases with their seconds. The most important case is first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from benchmarks.gpu.record import Figure

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench

Measure = Callable[["Bench"], Iterator[Figure]]


@dataclass(frozen=True)
class Case:
    """One case of the benchmark."""

    name: str
    seconds: float
    """Planned seconds. The case is skipped if less time is left."""
    measure: Measure
    needs_bitsandbytes: bool = False


def _in(module: str, function: str = "measure") -> Measure:
    """Returns a function that is imported when its case runs. A failed import then affects only this case."""

    def measure(bench: "Bench") -> Iterator[Figure]:
        yield from getattr(import_module(f"benchmarks.gpu.{module}"), function)(bench)

    return measure


CASES = [
    Case("matmul", 20, _in("matmul")),
    Case("correctness", 50, _in("correctness")),
    Case("backends", 15, _in("backends")),
    Case("checkpoints", 25, _in("checkpoints")),
    Case("ranks", 20, _in("ranks")),
    Case("LoRA", 90, _in("training", "lora")),
    Case("kernels", 20, _in("kernels")),
    Case("switches", 100, _in("switches")),
    Case("memory", 30, _in("memory")),
    Case("QLoRA", 70, _in("training", "qlora"), needs_bitsandbytes=True),
    Case("answers", 40, _in("answers")),
    Case("long micro-batch", 20, _in("training", "long")),
    Case("Full", 40, _in("training", "full")),
]
