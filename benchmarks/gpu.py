"""Our training loop on an NVIDIA GPU: tokens per second, utilisation, and peak memory against what sizing predicts.

    python -m benchmarks.gpu [--json FILE] [--model NAME ...] [--method NAME ...]

Needs a GPU, PyTorch, Transformers, PEFT, Accelerate and pydantic, bitsandbytes for QLoRA and for Full with 8-bit
moments, and no network: weights are random, in the shapes of Llama-3.1-8B and Qwen2.5-0.5B, made on the GPU in bf16.
`--device cpu --model toy` runs all of it in seconds, to see that it works.
"""

import argparse
import gc
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_api.sizing import Optimizer, TrainedMethod

ROOT = Path(__file__).parents[1]
if importlib.util.find_spec("finetune_trainer") is None:  # in a bare checkout
    sys.path[:0] = [str(ROOT / folder) for folder in ("crds", "trainer_image", ".")]

NEEDED = ("torch", "transformers", "peft", "accelerate", "pydantic", "numpy", "safetensors")
ROW_TOKENS, ROWS, LABELS = 512, 16, 0.25
"""Rows of a step, and what share of their tokens is learned."""
MICRO_BATCH_TOKENS = 2048
WARM_UP, STEPS = 2, 5


@dataclass(frozen=True)
class Figure:
    """One model trained by one method."""

    model: str
    method: str
    optimizer: str
    checkpointing: bool
    tokens_per_second: float
    tflops: float
    """Arithmetic of the model by finetune_api.run_time, per second, in 10^12."""
    utilisation: float
    """Of the matmul measured on this device."""
    predicted: int
    """Peak memory in bytes by finetune_api.sizing."""
    allocated: int
    """At most, in tensors; 0 on a CPU."""
    reserved: int
    """At most, by PyTorch's allocator; 0 on a CPU."""
    outside: int
    """Taken on the GPU beside that allocator: the context and the libraries."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what was asked for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", nargs="+", default=["qwen2.5-0.5b", "llama-3.1-8b"], help="or toy")
    parser.add_argument("--method", nargs="+", choices=["LoRA", "QLoRA", "Full"], default=["LoRA", "QLoRA", "Full"])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(arguments)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"missing, install first: {', '.join(missing)}", file=sys.stderr)
        return 2
    four_bit = importlib.util.find_spec("bitsandbytes") is not None
    if not four_bit:
        stand_in_for_bitsandbytes()
        print("bitsandbytes is missing: QLoRA and 8-bit optimizers are left out", file=sys.stderr)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no GPU: --device cpu --model toy shows only that this script works", file=sys.stderr)
        return 2
    return report(options, four_bit)


def report(options: argparse.Namespace, four_bit: bool) -> int:
    """Runs every case that fits, one after the other."""
    import torch

    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    limit = matmul_tflops(device)
    print(f"{name}, torch {torch.__version__}: bf16 matmul {limit:.1f} TFLOP/s")
    print(f"{'':27} tokens/s  TFLOP/s  of matmul  predicted  measured  of which context")
    figures = []
    for model in options.model:
        for method in options.method:
            if method == "QLoRA" and not four_bit:
                continue
            figure = run_case(model, method, device, limit, four_bit)
            if figure:
                figures.append(figure)
                print(line_of(figure), flush=True)
    if options.json:
        environment = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "matmul": limit}
        text = json.dumps(environment | {"figures": [asdict(figure) for figure in figures]}, indent=1)
        options.json.write_text(text)
    return 0


def line_of(figure: Figure) -> str:
    """One row of the table."""
    from finetune_api.quantity import gibibytes

    what = f"{figure.model} {figure.method}{' checkpointed' if figure.checkpointing else ''}"
    return (
        f"{what:27} {figure.tokens_per_second:8,.0f}  {figure.tflops:7.1f}  {figure.utilisation:9.0%}  "
        f"{gibibytes(figure.predicted):>9}  {gibibytes(figure.reserved + figure.outside):>8}  "
        f"{gibibytes(figure.outside):>16}"
    )


def matmul_tflops(device: Any, seconds: float = 1.0) -> float:
    """10^12 operations a second of a bf16 matrix product, repeated for `seconds`: what there is to reach."""
    import torch

    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < (seconds if device.type == "cuda" else 0.1):
        for _ in range(10):
            a @ b
        synchronize(device)
        count += 10
    return 2 * size**3 * count / spent / 1e12


def run_case(name: str, method: "TrainedMethod", device: Any, limit: float, four_bit: bool) -> Figure | None:
    """Trains one model by one method; None, with the reason printed, where that does not fit."""
    import torch

    from benchmarks.random_models import random_shape
    from finetune_api.quantity import gibibytes
    from finetune_api.run_time import training_flops

    shape = random_shape(name)
    plan = plan_of(shape, method, device, four_bit)
    if plan is None:
        print(f"{name} {method}: left out, sizing says that it does not fit")
        return None
    try:
        seconds = seconds_of_a_step(name, plan.setup, device)
    except torch.OutOfMemoryError:
        print(f"{name} {method}: out of memory, where sizing says that {gibibytes(plan.memory.total)} are enough")
        return None
    tflops = training_flops(shape, plan.setup, work_of_a_step()) / seconds / 1e12
    allocated, reserved, outside = memory_of(device)
    return Figure(
        model=name,
        method=method,
        optimizer=plan.setup.optimizer,
        checkpointing=plan.setup.checkpointing,
        tokens_per_second=ROWS * ROW_TOKENS / seconds,
        tflops=tflops,
        utilisation=tflops / limit,
        predicted=plan.memory.total,
        allocated=allocated,
        reserved=reserved,
        outside=outside,
    )


def work_of_a_step() -> Any:
    """What one optimizer step computes."""
    from finetune_api.run_time import Work

    tokens = ROWS * ROW_TOKENS
    return Work(
        tokens=tokens,
        labels=round(tokens * LABELS),
        context=ROW_TOKENS,
        micro_batches=tokens // MICRO_BATCH_TOKENS,
        answers=0,
        prompt_tokens=0,
        answer_tokens=0,
        answering=0,
        loads=1,
    )


def plan_of(shape: Any, method: "TrainedMethod", device: Any, four_bit: bool) -> Any:
    """The first way that fits the device: without checkpointing, with it, with 8-bit moments."""
    import torch

    from finetune_api import sizing

    optimizers: list[Optimizer] = ["AdamW"]
    if method == "Full" and four_bit:
        optimizers.append("PagedAdamW8bit")
    setups = [sizing.Setup(method, optimizer, on) for optimizer in optimizers for on in (False, True)]
    load = sizing.Load(MICRO_BATCH_TOKENS, round(MICRO_BATCH_TOKENS * LABELS))
    if device.type == "cpu":
        return sizing.first_fit(shape, setups, [load], float("inf"), sizing.CPU)
    return sizing.first_fit(shape, setups, [load], torch.cuda.mem_get_info()[1])


def seconds_of_a_step(name: str, setup: Any, device: Any) -> float:
    """Of the trainer's own loop, on average, once warm."""
    from accelerate import Accelerator

    from benchmarks.random_models import SETTINGS, random_rows, trainable_model
    from finetune_api.method import MethodType
    from finetune_api.preflight_status import Resolved
    from finetune_api.training import Training
    from finetune_trainer.training_loop import training_steps

    model = trainable_model(name, setup.method, device, setup.checkpointing)
    give_back(device)
    resolved = Resolved(
        method=MethodType(setup.method),
        learning_rate=1e-5,
        warmup_steps=0,
        total_steps=WARM_UP + STEPS,
        max_sequence_length=ROW_TOKENS,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        max_new_tokens=8,
        prompt_format="Plain",
        parameters=1,
    )
    training = Training.model_validate({"globalBatchSize": ROWS, "optimizer": setup.optimizer})
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16")
    rows = random_rows(ROW_TOKENS, ROWS, LABELS, SETTINGS[name]["vocab_size"])
    steps = list(training_steps(model, rows, training, resolved, accelerator))
    return sum(step.seconds for step in steps[WARM_UP:]) / STEPS


def memory_of(device: Any) -> tuple[int, int, int]:
    """Peak allocated, peak reserved, and what the GPU holds beside the allocator."""
    if device.type == "cpu":
        return 0, 0, 0
    cuda = torch_cuda()
    free, total = cuda.mem_get_info()
    outside = total - free - cuda.memory_reserved()
    peak = cuda.max_memory_allocated(), cuda.max_memory_reserved()
    give_back(device)
    return *peak, outside


def give_back(device: Any) -> None:
    """Returns what is no longer used to the GPU, and forgets the peak so far."""
    gc.collect()
    if device.type == "cuda":
        torch_cuda().empty_cache()
        torch_cuda().reset_peak_memory_stats()


def synchronize(device: Any) -> None:
    """Waits for what was started."""
    if device.type == "cuda":
        torch_cuda().synchronize()


def torch_cuda() -> Any:
    """torch.cuda, once torch is known to be there."""
    import torch

    return torch.cuda


def stand_in_for_bitsandbytes() -> None:
    """Lets the trainer's modules be imported without bitsandbytes. PEFT and Transformers are asked first, so that they
    remember that it is missing."""
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from transformers.utils import is_bitsandbytes_available

    for available in (is_bnb_available, is_bnb_4bit_available, is_bitsandbytes_available):
        available()
    for name, classes in (
        ("bitsandbytes", ()),
        ("bitsandbytes.nn", ("Linear4bit", "Params4bit")),
        ("bitsandbytes.optim", ("AdamW8bit", "GlobalOptimManager", "PagedAdamW8bit")),
    ):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for kind in classes:
            setattr(module, kind, type(kind, (), {}))
        sys.modules[name] = module


if __name__ == "__main__":
    sys.exit(main())
