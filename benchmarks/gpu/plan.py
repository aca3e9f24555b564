"""The cases in their order, what matters most first, and the seconds each may take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.gpu import answers, correctness, kernels, matmul, memory, switches, training
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Figure


@dataclass(frozen=True)
class Case:
    """Something to measure."""

    name: str
    seconds: float
    """What it is given. A case that has less left is not begun."""
    measure: Callable[[Bench], Iterator[Figure]]
    needs_bitsandbytes: bool = False


CASES = [
    Case("matmul", 20, matmul.measure),
    Case("correctness", 50, correctness.measure),
    Case("LoRA", 90, training.lora),
    Case("kernels", 20, kernels.measure),
    Case("switches", 100, switches.measure),
    Case("memory", 30, memory.measure),
    Case("QLoRA", 70, training.qlora, needs_bitsandbytes=True),
    Case("answers", 40, answers.measure),
    Case("long micro-batch", 20, training.long),
    Case("Full", 40, training.full),
]
