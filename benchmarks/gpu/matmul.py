"""Measures the speed limit: matrix products in bf16 with the shapes of the main model, forward and backward."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.bench import MATMUL, Bench
from benchmarks.gpu.record import Figure
from benchmarks.random_models import random_shape

SECONDS = 0.4
"""Seconds for which each product is repeated."""


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields the speed of each shape, of a square for comparison, and of all products of the model together."""
    shape, tokens = random_shape(bench.sizes.main), bench.sizes.micro_batches[-1]
    square = 8192 if bench.device.type == "cuda" else 256
    yield Figure(f"square of {square:,}", _tflops(square**3, _seconds(bench, square, square, square)), "TFLOP/s")
    counts = {(matrix.rows, matrix.columns): 0 for matrix in shape.matrices} | {(shape.vocabulary, shape.hidden): 1}
    for matrix in shape.matrices:
        counts[matrix.rows, matrix.columns] += matrix.count
    total = operations = 0.0
    for (rows, columns), count in counts.items():
        # Forward: [tokens, columns] to [tokens, rows]. Backward: the gradient of the input.
        forward, backward = _seconds(bench, tokens, columns, rows), _seconds(bench, tokens, rows, columns)
        size = tokens * rows * columns
        beside = f"backward {_tflops(size, backward):.4g}"
        yield Figure(f"{tokens:,} x {columns:,} x {rows:,}", _tflops(size, forward), "TFLOP/s", beside)
        total, operations = total + count * (forward + backward), operations + count * 2 * size
    yield Figure(MATMUL, _tflops(operations, total), "TFLOP/s", "the shares below are relative to this figure")


def _tflops(multiplications: float, seconds: float) -> float:
    return 2 * multiplications / seconds / 1e12


def _seconds(bench: Bench, rows: int, inner: int, columns: int) -> float:
    """Returns the seconds of one product [rows, inner] x [inner, columns]. The numbers are random, because products of
    zeros are faster."""
    left, right = (_random(bench, *size) for size in ((rows, inner), (inner, columns)))
    for _ in range(3):
        left @ right
    bench.synchronize()
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < (SECONDS if bench.device.type == "cuda" else 0.02):
        for _ in range(5):
            left @ right
        bench.synchronize()
        count += 5
    return spent / count


def _random(bench: Bench, *size: int) -> Tensor:
    return torch.randn(*size, device=bench.device, dtype=torch.bfloat16)
