"""Compares tokens per second of one and of two processes of a training on a CPU.

    python -m benchmarks.ranks [--model NAME] [--method LoRA]

The processes are the ranks of one training, as with two GPUs: each takes a share of the rows of a step, and gloo adds
up their gradients. One process with two threads is measured too, because it uses the same two processors. The
contenders take turns, so that other load on the machine affects all of them. Each turn starts new processes, and its
first step does not count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator

from benchmarks.random_models import SETTINGS, random_rows, trainable_model
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Training
from finetune_api.status.preflight import Resolved
from finetune_trainer.pod.rank import Place, place
from finetune_trainer.ranks.environment import environment
from finetune_trainer.ranks.group import join, leave
from finetune_trainer.training.loop import training_steps

ONE, TWO, THREADS = "one process, one thread", "two processes, one thread each", "one process, two threads"
CONTENDERS = {ONE: (1, 1), TWO: (2, 1), THREADS: (1, 2)}
"""Processes, and threads of each."""
WANTED = 1.5
"""Tokens per second of two processes, as a multiple of those of one."""
ROWS, LABELS = 4, 0.5
"""Rows of a step, and the share of their tokens that is learned."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table. Returns 1 if two processes are slower than WANTED, or else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-300m", choices=list(SETTINGS), help="shape of the model")
    parser.add_argument("--method", default="LoRA", choices=["LoRA", "QLoRA", "Full"])
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each row")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn that count")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.threads:
        print(json.dumps(_speed(options)))
        return 0
    turns: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(options.turns):
        for name in CONTENDERS:
            turns[name].append(_turn(*CONTENDERS[name], sys.argv[1:] if arguments is None else arguments))
            print(f"turn {turn + 1} of {options.turns}: {name}: {turns[name][-1]:.0f} tokens/s", file=sys.stderr)
    print(table({name: median(speeds) for name, speeds in turns.items()}, options))
    return int(median(turns[TWO]) < WANTED * median(turns[ONE]))


def table(speeds: dict[str, float], options: argparse.Namespace) -> str:
    """Returns the results as Markdown. `speeds`: tokens per second of each contender."""
    lines = [
        f"{options.model}, {options.method}, steps of {ROWS} rows of {options.tokens} tokens; medians of "
        f"{options.turns} turns; {len(os.sched_getaffinity(0))} processors; torch {version('torch')}",
        "",
        "| | tokens/s | of one process |",
        "| --- | --: | --: |",
    ]
    return "\n".join(
        [*lines, *(f"| {name} | {speed:.0f} | {speed / speeds[ONE]:.2f} |" for name, speed in speeds.items())]
    )


def _turn(ranks: int, threads: int, arguments: Sequence[str]) -> float:
    """Starts the processes of a contender. Returns their tokens per second."""
    command = [sys.executable, "-m", "benchmarks.ranks", *arguments, "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as meeting:
        processes = [
            subprocess.Popen(
                command,
                env={
                    **os.environ,
                    **environment(Place(rank, ranks, Path(meeting)), {"OMP_NUM_THREADS": str(threads)}, threads),
                    "OMP_WAIT_POLICY": "PASSIVE",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        answers = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, answers, strict=True):
        if process.returncode:
            raise SystemExit(f"A process failed:\n{errors}")
    return float(json.loads(answers[0][0].splitlines()[-1]))


def _speed(options: argparse.Namespace) -> float:
    """Returns the tokens per second of the steps that count, as one of the ranks."""
    torch.set_num_threads(options.threads)
    join(place())
    model = trainable_model(options.model, options.method, torch.device("cpu"), checkpointing=False)
    rows = random_rows(options.tokens, ROWS, LABELS, SETTINGS[options.model]["vocab_size"])
    resolved = Resolved(
        method=MethodType(options.method),
        learning_rate=1e-4,
        warmup_steps=0,
        total_steps=options.steps + 1,
        max_sequence_length=options.tokens,
        micro_batch_tokens=2048,
        max_new_tokens=1,
        metrics=[MetricName.LOSS],
        prompt_format="Plain",
        parameters=1,
    )
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    steps = training_steps(
        accelerator.prepare_model(model), rows, Training(global_batch_size=ROWS), resolved, accelerator
    )
    counted = list(steps)[1:]
    leave()
    return sum(step.tokens for step in counted) / sum(step.seconds for step in counted)


if __name__ == "__main__":
    sys.exit(main())
