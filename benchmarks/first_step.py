"""Measures the time from a training pod's start to its first step, by part, on prepared data.

    python -m benchmarks.first_step [--rows 200]

SmolLM2-135M-Instruct, LoRA, eight rows a step, everything on local disk. The parts are the trainer's own functions in
the order of `finetune_trainer.train.recipe`, in a fresh process; the base's evaluation, which lies between the proof
and the adapter and grows with the held-out rows, is left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.trainer import seeded_pairs
from examples.model.convert import model_folder

STARTED, CHILD = "FIRST_STEP_STARTED", "--measure"


def main() -> None:
    """Prepares data and measures a new process. With --measure, it is this new process."""
    if CHILD in sys.argv:
        measure(Path(sys.argv[-1]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Path(folder), options.rows)
        subprocess.run([sys.executable, "-m", "finetune_trainer", "preflight", str(bundle)], check=True)
        command = [sys.executable, "-m", "benchmarks.first_step", CHILD, str(bundle)]
        subprocess.run(command, check=True, env=os.environ | {STARTED: str(time.time())})


def write_bundle(folder: Path, rows: int) -> Path:
    """A bundle over local paths, and its rows."""
    data = folder / "rows.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in seeded_pairs(rows)]
    data.write_text("\n".join(lines), encoding="utf-8")
    spec = {
        "model": {"uri": str(model_folder())},
        "dataset": {"train": [{"uri": str(data)}]},
        "output": {"uri": str(folder / "output")},
    }
    bundle = folder / "bundle.json"
    bundle.write_text(json.dumps({"spec": spec, "allowCPU": True}))
    return bundle


def measure(path: Path) -> None:
    """Prints a Markdown table of the parts."""
    parts: dict[str, tuple[float, float]] = {"Python itself": (time.time() - float(os.environ[STARTED]), 0.0)}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started, cpu = time.perf_counter(), time.process_time()
        yield
        parts[name] = (time.perf_counter() - started, time.process_time() - cpu)

    with part("imports"):
        from finetune_trainer.__main__ import read_bundle, wait_asleep

        wait_asleep()
        from accelerate import Accelerator

        import finetune_trainer.train.recipe  # noqa: F401, everything a training pod imports
        from finetune_trainer.base.model_files import copy_files
        from finetune_trainer.handover.prepared import read_prepared
        from finetune_trainer.model.isolation import sharing
        from finetune_trainer.model.parameters.loading import choose_device, load_model, load_tokenizer
        from finetune_trainer.model.parameters.trainable import make_trainable
        from finetune_trainer.storage.job_storage import open_storage
        from finetune_trainer.training.loop import training_steps
    bundle = read_bundle(path)
    storage, scratch = open_storage(bundle), path.parent / "scratch"
    scratch.mkdir()
    with part("prepared data"):
        prepared = read_prepared(storage, bundle, scratch)
    with part("device"):
        device, _ = choose_device(bundle.allow_cpu)
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16")
    with part("the model's files"):
        copy_files(storage, bundle.spec.model.uri, prepared.model_files, scratch / "model")
    with part("the model"):
        load_tokenizer(scratch / "model")
        model = load_model(scratch / "model", prepared.resolved.method, device)
    with part("proof of isolation"):
        sharing(model)
    with part("adapter"):
        model = make_trainable(model, bundle.spec.method, prepared.resolved.method, bundle.spec.training.seed)
        model = accelerator.prepare_model(model)
    with part("first step"):
        steps = training_steps(model, prepared.train, bundle.spec.training, prepared.resolved, accelerator)
        next(steps)
    rows = [f"| {name} | {seconds:.1f} | {cpu:.1f} |" for name, (seconds, cpu) in parts.items()]
    until = [name for name in parts if name != "first step"]
    seconds, cpu = (sum(parts[name][i] for name in until) for i in (0, 1))
    print("\n".join(["| part | seconds | CPU seconds |", "| --- | --: | --: |", *rows]))
    print(f"| until the first step begins | {seconds:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
