"""Measures how long a training waits while its state is copied for a checkpoint, and what the upload costs beside it.

    python -m benchmarks.checkpoint_copy [--checkpoints 12] [--folder FOLDER]

The state is that of an adapter of rank 16 on all linear layers of Llama-3.1-8B: 42 million parameters in fp32 and both
moments of AdamW. A step is the optimizer's step on random gradients, without the base model. The trainer's own code
copies the state and uploads it to a local folder, while further steps are taken.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import nn

from finetune_api.bundle import Bundle
from finetune_api.spec.training import Training
from finetune_trainer.__main__ import wait_asleep
from finetune_trainer.checkpoints.buffers import bytes_of
from finetune_trainer.checkpoints.pace import Pace
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.checkpoints.training_state import live_state
from finetune_trainer.storage.job_storage import open_storage
from finetune_trainer.training.checkpointing.checkpoints import Checkpoints
from finetune_trainer.training.checkpointing.trainee import Trainee
from finetune_trainer.training.loop import Step
from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.optimizer import make_optimizer
from finetune_trainer.training.run_state import RunState

RANK, LAYERS, HIDDEN, KEYS, INNER = 16, 32, 4096, 1024, 14336
LINEARS = {
    "q": (HIDDEN, HIDDEN),
    "k": (HIDDEN, KEYS),
    "v": (HIDDEN, KEYS),
    "o": (HIDDEN, HIDDEN),
    "gate": (HIDDEN, INNER),
    "up": (HIDDEN, INNER),
    "down": (INNER, HIDDEN),
}
"""Features in and out of the linear layers of Llama-3.1-8B."""
WAIT_POLICY = "OMP_WAIT_POLICY"
EVERY = 10
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class Figures:
    """What the checkpoints cost."""

    size: int
    """Bytes of one copy."""
    waits: list[float]
    """Seconds for which the training waited for each checkpoint."""
    cpu_seconds: float
    """Processor time of the thread for one checkpoint."""
    copies: float
    """Peak memory beyond that of the steps alone, as a multiple of one copy."""


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=12, help="number of checkpoints")
    parser.add_argument("--folder", type=Path, help="where to put the folder of the checkpoints")
    options = parser.parse_args()
    if WAIT_POLICY not in os.environ:
        wait_asleep()  # as the trainer does before it imports torch
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.checkpoint_copy", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(table(measure(Path(folder), options.checkpoints)))


def adapter() -> nn.Module:
    """Returns the parameters of the adapter, with gradients."""
    model = nn.Module()
    for layer in range(LAYERS):
        for name, (inputs, outputs) in LINEARS.items():
            for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                weight = nn.Parameter(torch.randn(shape))
                weight.grad = torch.randn(shape) * 1e-3
                model.register_parameter(f"{layer}-{name}-{part}", weight)
    return model


def measure(folder: Path, count: int) -> Figures:
    """Takes `count` checkpoints. Returns what they cost."""
    spec = {"model": {"uri": "/model"}, "dataset": {"train": [{"uri": "/rows"}]}, "output": {"uri": str(folder)}}
    storage = open_storage(Bundle.model_validate({"spec": spec, "allowCPU": True}))
    model = adapter()
    trainee = Trainee(model, make_optimizer(model, Training()), RunState(StepLayout(1, False)), lambda: None)
    store = CheckpointStore(storage, str(folder / "checkpoints"), "pod", {})
    store.begin()
    checkpoints = Checkpoints(store, Pace(10**9, EVERY), attempt=1, started=perf_counter())
    checkpoints.begin(trainee)
    step(trainee)
    forget_peak()
    trainee.optimizer.step()
    without, waits = peak(), list[float]()
    for number in range(1, EVERY * count + 1):
        if number > 1:
            step(trainee)
        if number % EVERY == 0:
            checkpoints.finish()  # else a slow disk would decide which steps have a checkpoint
        started = perf_counter()
        checkpoints.after_step(trainee)
        if number % EVERY == 0:
            waits.append(perf_counter() - started)
    checkpoints.finish()
    size, most = bytes_of(live_state(model, trainee.optimizer)[0]), peak()
    assert checkpoints.uploaded is not None, "no checkpoint was uploaded"
    return Figures(size, waits, checkpoints.cpu_seconds / count, (most - without) / size)


def step(trainee: Trainee) -> None:
    """Takes one step."""
    started = perf_counter()
    trainee.optimizer.step()
    number = len(trainee.run.steps) + 1
    trainee.run.steps.append(Step(number, 1.0, 0.1, 0.1, 1, perf_counter() - started))


def forget_peak() -> None:
    """Lets the kernel measure the peak of this process anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def table(figures: Figures) -> str:
    """The figures as a Markdown table."""
    first, *later = (f"{1000 * wait:.0f} ms" for wait in figures.waits)
    longest, middle = (f"{1000 * of(figures.waits[1:]):.0f} ms" for of in (max, median))
    setting = f"{os.cpu_count()} processors; torch {torch.__version__}"
    return f"""A copy of {figures.size / 2**20:.0f} MiB; {len(later) + 1} checkpoints; {setting}

| first wait | longest wait after it | median | processor time of an upload | memory |
| --: | --: | --: | --: | --: |
| {first} | {longest} | {middle} | {figures.cpu_seconds:.2f} s | {figures.copies:.2f} copies |"""


if __name__ == "__main__":
    main()
