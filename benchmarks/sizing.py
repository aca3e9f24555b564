"""Compares the predicted memory with the resident memory of the real training loop on a CPU.

    python -m benchmarks.sizing [NAME ...]     # about two minutes each; NAME: smollm2-135m-lora, ...

Each case runs in a process of its own, which loads the model as the trainer does, takes two optimizer steps (the second
with the optimizer's state in place) and reports the most memory the kernel counted to it meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_api.quantity import gibibytes
from finetune_trainer.sizing import device, memory
from finetune_trainer.sizing.model_shape import ModelShape, model_shape

ROWS, LABELS = 8, 0.25
"""Rows per step, and the share of their tokens that is trained."""
STEPS = 2


@dataclass(frozen=True)
class Case:
    """One measured run."""

    model: str
    method: memory.TrainedMethod
    tokens: int
    """Of a step, which is one micro-batch."""

    @property
    def name(self) -> str:
        return f"{self.model}-{self.method.lower()}"


CASES = [
    Case("smollm2-135m", "LoRA", 256),
    Case("llama-300m", "LoRA", 256),
    Case("qwen2.5-0.5b", "LoRA", 256),
    Case("smollm2-135m", "QLoRA", 256),
    Case("smollm2-135m", "Full", 256),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a prediction differs by more than 15%, or else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="NAME", choices=[[], *(case.name for case in CASES)])
    parser.add_argument("--json", type=Path, help="output file for the figures")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "METHOD", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        folder, method, tokens = options.measure
        print(json.dumps(measure(Path(folder), method, int(tokens))))
        return 0
    figures = [compare(case) for case in CASES if not options.cases or case.name in options.cases]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return int(any(abs(figure["error"]) > 0.15 for figure in figures))


def compare(case: Case) -> dict[str, Any]:
    """Measures one case and prints the result."""
    with tempfile.TemporaryDirectory(prefix="sizing-") as scratch:
        folder = model_folder(case.model, Path(scratch))
        command = [sys.executable, "-m", "benchmarks.sizing", "--measure", str(folder), case.method, str(case.tokens)]
        measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        load = memory.Load(case.tokens, round(case.tokens * LABELS))
        predicted = memory.predict(shape_of(folder), memory.Setup(case.method), load, device.CPU)
    error = predicted.total / measured["peak"] - 1
    print(
        f"{case.name:22} {case.tokens:5} tokens  measured {gibibytes(measured['peak']):>7}  "
        f"predicted {gibibytes(predicted.total):>7}  {error:+.0%}",
        flush=True,
    )
    return {"case": case.name, "tokens": case.tokens, "error": error, "predicted": asdict(predicted), **measured}


def model_folder(name: str, scratch: Path) -> Path:
    """SmolLM2 from the cache of the tests, or a random model of that name's shape, saved into `scratch`."""
    if name == "smollm2-135m":
        from examples.model.convert import model_folder as smollm2

        return smollm2()
    from benchmarks.random_models import random_model

    random_model(name).save_pretrained(scratch)
    return scratch


def shape_of(folder: Path) -> ModelShape:
    """Returns the shape as preflight reads it from the files."""
    from safetensors import safe_open

    sizes: dict[str, Sequence[int]] = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "np") as weights:
            sizes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return model_shape(json.loads((folder / "config.json").read_text()), sizes)


def measure(folder: Path, method: memory.TrainedMethod, tokens: int) -> dict[str, int]:
    """Returns the resident bytes before loading the model, after loading it, and at the peak of the steps."""
    import torch
    from accelerate import Accelerator

    from benchmarks.random_models import random_rows
    from finetune_api.spec.method import Method, MethodType
    from finetune_api.spec.training import Training
    from finetune_api.status.preflight import Resolved
    from finetune_trainer.model.parameters.loading import load_model
    from finetune_trainer.model.parameters.trainable import make_trainable
    from finetune_trainer.training.loop import training_steps

    torch.manual_seed(0)
    started = resident("VmRSS")
    model = load_model(folder, MethodType(method), torch.device("cpu"))
    loaded = resident("VmRSS")
    rows = random_rows(tokens // ROWS, ROWS, LABELS, model.config.vocab_size)
    resolved = Resolved(
        method=MethodType(method),
        learning_rate=1e-4,
        warmup_steps=0,
        total_steps=STEPS,
        max_sequence_length=tokens,
        micro_batch_tokens=tokens,
        max_new_tokens=8,
        prompt_format="Plain",
        parameters=1,
    )
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    tuned = make_trainable(model, Method(), MethodType(method), seed=0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    steps = list(training_steps(tuned, rows, Training(global_batch_size=ROWS), resolved, accelerator))
    return {"started": started, "loaded": loaded, "peak": resident("VmHWM"), "seconds": round(steps[-1].seconds)}


def resident(line: str) -> int:
    """Returns the resident bytes of this process: now (VmRSS) or at the peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return next(int(text.split()[1]) for text in status.splitlines() if text.startswith(line)) * 1024


if __name__ == "__main__":
    sys.exit(main())
