"""The objects that cases measure: the device, the loaded model, steps of the trainer's loop, and memory."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from benchmarks.gpu.record import Figure, Record
from benchmarks.gpu.sizes import Sizes
from benchmarks.one_row import one_row
from benchmarks.random_models import SETTINGS, random_rows, random_shape, trainable_model
from finetune_api.quantity import gibibytes
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Training
from finetune_api.status.preflight import Resolved
from finetune_trainer.handover.prepared import Example
from finetune_trainer.sizing import memory
from finetune_trainer.sizing.run_time import training_flops
from finetune_trainer.training.loop import Step, training_steps

WARM_UP, STEPS = 2, 5
RATE = 1e-12
"""Learning rate. The value does not matter, because the benchmark measures no quality."""


@dataclass(frozen=True)
class Speed:
    """The measurements of some steps of the loop after the warm-up."""

    tokens_per_second: float
    steps: tuple[Step, ...]
    """All steps, including the warm-up."""
    reserved: int
    """Bytes reserved by the allocator after the steps; 0 on a CPU."""
    outside: int
    """Other used bytes of the GPU: the context and the libraries."""


class Bench:
    """The device and the loaded model."""

    def __init__(self, device: torch.device, sizes: Sizes, record: Record) -> None:
        self.device, self.sizes, self.record = device, sizes, record
        self.deadline = 0.0
        """End of the current case, in seconds of the monotonic clock."""
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16")
        self._held: tuple[str, str] | None = None
        self._model: Any = None

    def left(self) -> float:
        """Returns the seconds until the case should end."""
        return self.deadline - time.monotonic()

    def model(self, name: str, method: memory.TrainedMethod) -> Any:
        """Returns the model `name`, prepared for training with `method`. Only one model is in memory at a time."""
        if self._held != (name, method):
            self.forget()
            started = time.monotonic()
            self._model = trainable_model(name, method, self.device, checkpointing=False)
            self._held = name, method
            self.free()
            print(
                f"  ({name} for {method}, with random weights, created in {time.monotonic() - started:.1f} s)",
                flush=True,
            )
        return self._model

    def forget(self) -> None:
        """Frees the model."""
        self._held = self._model = None
        self.free()

    def free(self) -> None:
        """Frees unused GPU memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def synchronize(self) -> None:
        """Waits until the GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rows(self, name: str, count: int | None = None) -> list[Example]:
        """Returns rows of random tokens, all trained on: `count`, or by default the rows of one step."""
        return random_rows(self.sizes.document, count or self.sizes.rows, 1.0, SETTINGS[name]["vocab_size"])

    def resolved(self, micro_batch_tokens: int, steps: int = WARM_UP + STEPS) -> Resolved:
        """Returns the settings that preflight would resolve."""
        return Resolved(
            method=MethodType.LORA,
            learning_rate=RATE,
            warmup_steps=0,
            total_steps=steps,
            max_sequence_length=self.sizes.document,
            micro_batch_tokens=micro_batch_tokens,
            max_new_tokens=self.sizes.answer,
            prompt_format="Plain",
            parameters=1,
        )

    def steps(
        self,
        model: nn.Module,
        rows: Sequence[Example],
        micro_batch_tokens: int,
        steps: int = STEPS,
        optimizer: Optimizer | None = None,
        **switches: Any,
    ) -> Speed:
        """Trains WARM_UP steps, and then `steps` steps that are timed. Each step uses all `rows`."""
        self.free()
        training, taken = Training(global_batch_size=len(rows)), []
        resolved = self.resolved(micro_batch_tokens, WARM_UP + steps)
        whole: Any = model
        for step in training_steps(whole, rows, training, resolved, self.accelerator, optimizer=optimizer, **switches):
            taken.append(step)
            if len(taken) == WARM_UP:
                self.synchronize()
                started = time.perf_counter()
        self.synchronize()
        seconds = time.perf_counter() - started
        return Speed(sum(step.tokens for step in taken[WARM_UP:]) / seconds, tuple(taken), *self._memory())

    def _memory(self) -> tuple[int, int]:
        if self.device.type == "cpu":
            return 0, 0
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        return reserved, total - free - reserved

    def figures(
        self, what: str, name: str, setup: memory.Setup, speed: Speed, tokens: int, wanted: int = 0
    ) -> list[Figure]:
        """Returns the speed, compared with the measured matmul, and the memory, compared with the prediction of sizing.
        `tokens`: size of a micro-batch."""
        shape, rate = random_shape(name), speed.tokens_per_second
        tflops = rate * training_flops(shape, setup, one_row(self.sizes.document, steps=1)) / self.sizes.document / 1e12
        beside = [f"{tflops:.4g} TFLOP/s"]
        if matmul := self.record.figure("matmul", MATMUL):
            beside.append(f"{tflops / matmul:.0%} of the measured matmul")
        if wanted and self.sizes.wanted:
            beside.append(f"goal: {wanted:,}")
        more = {"tflops": tflops, "seconds": [step.seconds for step in speed.steps]}
        figures = [Figure(f"{what}, speed", rate, "tokens/s", "; ".join(beside), more=more)]
        if self.device.type == "cuda":
            figures.append(self._sizing(what, memory.predict(shape, setup, memory.Load(tokens, tokens)), speed))
        return figures

    def _sizing(self, what: str, predicted: memory.Memory, speed: Speed) -> Figure:
        measured, allocated = speed.reserved + speed.outside, max(step.memory for step in speed.steps)
        off = predicted.total / measured - 1
        beside = (
            f"sizing predicts {gibibytes(predicted.total)}, {off:+.0%}, goal: within 10%; "
            f"{gibibytes(allocated)} in tensors, {gibibytes(speed.outside)} outside the allocator"
        )
        more = {"predicted": predicted.__dict__, "allocated": allocated, "outside": speed.outside}
        return Figure(f"{what}, memory", round(measured / 2**30, 2), "GiB", beside, more=more)


MATMUL = "all of the main model's products"
"""Name of the figure to which shares are relative, in TFLOP/s."""
