"""Profiles one step of one micro-batch: the time by kind of kernel, and the time without a running kernel."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import WARM_UP, Bench
from benchmarks.gpu.record import Figure
from finetune_api.spec.training import Training
from finetune_trainer.training.loop import training_steps

FAMILIES = {
    "memcpy": "memcpy|memset",
    "4 bits": "dequant|quantize",
    "attention": "flash|fmha|attention|sdpa",
    "GEMM": r"gemm|cutlass|xmma|nvjet|cublas|splitk|gemv|aten::(add)?mm$|aten::bmm|mkldnn_",
    "optimizer": "adam|multi_tensor|lpnorm|foreach",
    "softmax/loss": "softmax|nll|gather|scatter",
    "norm": "layer_?norm|rms_?norm|rsqrt|aten::pow|pow_tensor|mean",
    "elementwise": "elementwise|vectorized|aten::|copy|cat|triton|fill",
}
"""Patterns for the names of kernels, or of operations on a CPU. The first match counts. Unfused RMSNorm is recognised
by its square, mean and root. Its products count as elementwise."""
NAMED = 12
"""Number of kernels listed by name in the file."""


def measure(bench: Bench) -> Iterator[Figure]:
    """Yields each kind's share of the kernel time, and the share of the step without a running kernel."""
    name, cuda = bench.sizes.main, bench.device.type == "cuda"
    model, rows, tokens = bench.model(name, "LoRA"), bench.rows(name, 1), bench.sizes.document
    training, resolved = Training(global_batch_size=1), bench.resolved(tokens, WARM_UP + 1)
    steps = training_steps(model, rows, training, resolved, bench.accelerator)
    list(islice(steps, WARM_UP))
    bench.synchronize()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        step = next(steps)
        bench.synchronize()
    kind = "CUDA" if cuda else "CPU"
    # The optimizer's own mark spans all of its kernels.
    marks = re.compile("Optimizer[.]|ProfilerStep")
    events: list[Any] = list(seen.events() or [])
    kernels = [event for event in events if event.device_type.name == kind and not marks.match(event.name)]
    taken: Counter[str] = Counter()
    for event in kernels:
        taken[event.name] += event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
    yield from _shares(taken)
    if cuda:
        spans = [(event.time_range.start, event.time_range.end) for event in kernels]
        beside = f"{len(kernels):,} kernels in {step.seconds * 1000:.0f} ms, the profiler's own time included"
        yield Figure("idle", 100 * idle(spans), "%", beside)


def _shares(taken: "Counter[str]") -> Iterator[Figure]:
    total = sum(taken.values())
    families: Counter[str] = Counter()
    for name, microseconds in taken.items():
        families[family(name)] += microseconds
    for name, microseconds in families.most_common():
        largest = [[kernel[:120], time / 1000] for kernel, time in taken.most_common() if family(kernel) == name]
        more = {"milliseconds by kernel": largest[:NAMED]}
        yield Figure(name, 100 * microseconds / total, "%", f"{microseconds / 1000:.1f} ms", more=more)


def family(kernel: str) -> str:
    """Returns the kind of a kernel from its name."""
    return next((name for name, words in FAMILIES.items() if re.search(words, kernel, re.IGNORECASE)), "other")


def idle(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the share of the time between the first start and the last end in which no kernel runs."""
    begun, end, busy = None, 0.0, 0.0
    for start, stop in sorted(spans):
        begun = start if begun is None else begun
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / (end - begun) if begun is not None and end > begun else 0.0
