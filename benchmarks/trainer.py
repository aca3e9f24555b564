"""Compares tokens per second and peak memory of the training loop with TRL's SFTTrainer, with and without packing.

    python -m benchmarks.trainer [--data FILE]        # make bench-trainer [DATA=FILE]

SmolLM2-135M-Instruct, LoRA of rank 16 on all linear layers, bf16. FILE holds rows as .jsonl with the
columns question and answer, or prompt and completion; without it, seeded rows of like lengths stand in. Each contender
has a process of its own; they take their steps by turns, one at a time, so that whatever else the machine does meets
all of them alike. The ceiling is what this machine multiplies in bf16, divided by the 4 FLOPs a parameter and token
that a forward pass and a backward pass through frozen weights need.
"""

import argparse
import json
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median
from typing import Any

import numpy as np

from examples.model.convert import model_folder
from finetune_trainer.pod.progress import Progress
from finetune_trainer.rows.row_format import Message
from finetune_trainer.tokens.row_store import Example

OURS, TRL, PACKED, CEILING = "finetune-operator", "TRL, defaults", "TRL, packing", "bf16 matmul"
CONTENDERS = (OURS, TRL, PACKED, CEILING)
PACK = 1024
"""TRL's default max_length, which is also its packing length."""
ROWS_PER_PACK = 4
"""Approximate number of rows in a pack, so that steps of all trainers have about the same number of tokens."""
HELD_OUT = 16
LEARNING_RATE = 1e-3
MATMUL = 2048
ANSWER = "RESULT "


@dataclass(frozen=True)
class Turn:
    """The measurements of one trainer in one turn."""

    tokens: int
    """Tokens without padding."""
    supervised: int
    seconds: float
    cpu_seconds: float


Take = Callable[[Callable[[], None], Callable[[], None]], None]


def main() -> None:
    """Runs the whole comparison, or with --contender the process of one trainer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help=".jsonl file with the columns question and answer, or prompt and completion"
    )
    parser.add_argument("--rounds", type=int, default=4, help="timed turns of each trainer, after a warm-up")
    parser.add_argument("--batch", type=int, default=8, help="rows per step, a multiple of 4")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="training.microBatchTokens of our loop")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        contend(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Starts a process for each trainer, runs their turns and prints the table."""
    model_folder()
    workers = {name: _start(name) for name in CONTENDERS}
    turns: dict[str, list[Turn]] = {name: [] for name in CONTENDERS}
    progress = Progress("Measuring", "turns", (options.rounds + 1) * len(CONTENDERS))
    try:
        for _ in range(options.rounds + 1):
            for name, worker in workers.items():
                turns[name].append(Turn(**_ask(worker, "turn")))
                progress.advance(1)
        ends = {name: _ask(worker, "end") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
    print(table({name: measured[1:] for name, measured in turns.items()}, ends, options))


def _start(name: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.trainer", "--contender", name, *sys.argv[1:]]
    silent = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    quiet = os.environ | silent | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)


def _ask(worker: "subprocess.Popen[str]", what: str) -> dict[str, Any]:
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(what + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith(ANSWER):
            answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
            return answer
    raise SystemExit(f"{worker.args!r} ended. Its error is above.")


def table(turns: dict[str, list[Turn]], ends: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """Returns the results as Markdown."""

    def speed(name: str, of: str = "tokens", over: str = "seconds") -> float:
        return float(median(getattr(turn, of) / getattr(turn, over) for turn in turns[name]))

    ceiling = speed(CEILING)
    lines = [
        f"{_processor()}, {options.threads} threads; "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
        + f"; {options.data.name if options.data else 'seeded'} rows; "
        f"medians of {options.rounds} turns of {options.batch} rows; "
        f"ours with micro-batches of {options.micro_batch_tokens} tokens",
        "",
        "| | tokens/s | supervised tokens/s | tokens per CPU second | of the ceiling | peak memory "
        "| held-out loss before | after |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name in (OURS, TRL, PACKED):
        end = ends[name]
        lines.append(
            f"| {name} | {speed(name):.0f} | {speed(name, 'supervised'):.0f} | {speed(name, over='cpu_seconds'):.0f} "
            f"| {speed(name) / ceiling:.0%} | {end['memory'] / 2**30:.2f} GiB "
            f"| {end['before']:.4f} | {end['after']:.4f} after {end['trained']:,} tokens |"
        )
    lines += [
        f"| ceiling | {ceiling:.0f} | | {speed(CEILING, over='cpu_seconds'):.0f} | | | | |",
        "",
        f"{speed(OURS) / speed(TRL):.2f} times TRL's defaults, {speed(OURS) / speed(PACKED):.2f} times TRL packed "
        f"(by CPU time {speed(OURS, over='cpu_seconds') / speed(TRL, over='cpu_seconds'):.2f} and "
        f"{speed(OURS, over='cpu_seconds') / speed(PACKED, over='cpu_seconds'):.2f}).",
    ]
    return "\n".join(lines)


def _processor() -> str:
    described = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return described[0].split(": ", 1)[1] if described else platform.processor()


def rows(data: Path | None, count: int) -> list[Example]:
    """Returns rows as chat turns. The question is the prompt, and the answer is trained."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    examples = []
    for question, answer in (read_pairs(data) if data else seeded_pairs())[:count]:
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        learned = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        supervised = np.arange(len(prompt) + len(learned)) >= len(prompt)
        input_ids = np.array([*prompt, *learned], dtype=np.int32)
        said = (Message("user", question), Message("assistant", answer))
        examples.append(Example(input_ids, supervised, len(prompt), said, place=""))
    if len(examples) < count:
        raise SystemExit(
            f"{data} has {len(examples)} rows, but {count} are needed. Lower --rounds, or use another file."
        )
    return examples


def read_pairs(data: Path) -> list[tuple[str, str]]:
    """Returns question and answer of each line. Exits with a message if a line has neither pair of columns."""
    pairs = []
    for number, line in enumerate(data.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        names = next((names for names in (("question", "answer"), ("prompt", "completion")) if names[0] in row), None)
        if names is None or names[1] not in row:
            raise SystemExit(
                f"{data}:{number} has neither question and answer nor prompt and completion. Rename its columns."
            )
        pairs.append((row[names[0]], row[names[1]]))
    return pairs


def seeded_pairs(count: int = 512) -> list[tuple[str, str]]:
    """Returns generated word problems with the lengths of school mathematics problems and their solutions."""
    draw = random.Random(0)
    words = "each box holds pens and there are more books than the price of apples sold in a week".split()  # noqa: SIM905

    def text(middle: float, spread: float) -> str:
        length = max(8, round(draw.lognormvariate(np.log(middle), spread)))
        return " ".join(draw.choice(words) if draw.random() < 0.85 else str(draw.randint(2, 99)) for _ in range(length))

    return [(text(45, 0.4) + "?", text(85, 0.5) + f"\n#### {draw.randint(1, 999)}") for _ in range(count)]


def contend(options: argparse.Namespace) -> None:
    """Runs one trainer's process: a turn for each input line "turn", and the final result for the line "end"."""
    import torch

    torch.set_num_threads(options.threads)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    steps = options.rounds + 1
    if options.contender == CEILING:
        for _ in range(steps):
            _await_turn()
            _answer(**vars(_multiply()))
        _await_turn()
        _answer()
        return
    # A pack holds more rows than its share of a step where they are short.
    every = rows(options.data, HELD_OUT + options.batch * steps * (3 if options.contender == PACKED else 1))
    held_out, examples = every[:HELD_OUT], every[HELD_OUT:]
    (train_ours if options.contender == OURS else train_trl)(examples, held_out, steps, options)


def _await_turn() -> None:
    if not sys.stdin.readline():
        raise SystemExit


def _answer(**parts: Any) -> None:
    print(ANSWER + json.dumps(parts), flush=True)


def _multiply() -> Turn:
    """Multiplies for about a second. Its tokens are those that the model's parameters would take as many FLOPs for."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder()))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    a, b = (torch.randn(MATMUL, MATMUL).bfloat16() for _ in range(2))
    a @ b
    started, cpu, products = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < 1:
        a @ b
        products += 1
    tokens = round(products * 2 * MATMUL**3 / (4 * parameters))
    return Turn(tokens, 0, time.perf_counter() - started, time.process_time() - cpu)


def train_ours(examples: Sequence[Example], held_out: Sequence[Example], steps: int, options: Any) -> None:
    """Runs our training loop."""
    import torch
    from accelerate import Accelerator

    from finetune_api.spec.method import Method, MethodType
    from finetune_api.spec.training import Training
    from finetune_api.status.preflight import Resolved
    from finetune_trainer.handover.mixing import Mixture
    from finetune_trainer.model.batches import rows_of_step
    from finetune_trainer.model.parameters.loading import load_model
    from finetune_trainer.model.parameters.trainable import attach_lora
    from finetune_trainer.training.loop import training_steps

    base = load_model(model_folder(), MethodType.LORA, torch.device("cpu"))
    before = held_out_loss(base, held_out)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.prepare_model(attach_lora(base, Method(), seed=0))
    resolved = Resolved(
        method=MethodType.LORA,
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        total_steps=10**6,  # so that the rate stays where it is, as in the others
        max_sequence_length=PACK,
        micro_batch_tokens=options.micro_batch_tokens,
        max_new_tokens=1,
        prompt_format="ChatTemplate",
        parameters=1,
    )
    taken = training_steps(model, examples, Training(global_batch_size=options.batch), resolved, accelerator)
    trained = 0
    for number in range(steps):
        _await_turn()
        started, cpu = time.perf_counter(), time.process_time()
        step = next(taken)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        batch = [examples[row] for row in rows_of_step(Mixture((len(examples),)), options.batch, 0, number)]
        trained += step.tokens
        _answer(**vars(Turn(step.tokens, sum(int(row.supervised.sum()) for row in batch), seconds, cpu)))
    memory = getrusage(RUSAGE_SELF).ru_maxrss * 1024
    _await_turn()
    _answer(memory=memory, before=before, after=held_out_loss(base, held_out), trained=trained)


def train_trl(examples: Sequence[Example], held_out: Sequence[Example], steps: int, options: Any) -> None:
    """Runs TRL's SFTTrainer with its defaults, on the rows in the same order as our loop."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from finetune_trainer.randomness import shuffled

    packing = options.contender == PACKED
    turns: list[Turn] = []

    class Timed(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            self.counted = int(mask.sum() if mask is not None else inputs["input_ids"].numel())
            self.learned = int((inputs["labels"] != -100).sum())
            return super().training_step(model, inputs, *args, **kwargs)

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            # The turn begins where the step's rows are fetched, and ends where the next step's would be.
            if turns or hasattr(self, "started"):
                self.finish()
            _await_turn()
            self.started, self.cpu = time.perf_counter(), time.process_time()
            return super().get_batch_samples(*args, **kwargs)

        def finish(self) -> None:
            seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
            turns.append(Turn(self.counted, self.learned, seconds, cpu))
            _answer(**vars(turns[-1]))

    base = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.bfloat16)
    before = held_out_loss(base, held_out)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Timed(
            base,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                packing=packing,
                max_length=PACK,
                per_device_train_batch_size=options.batch // ROWS_PER_PACK if packing else options.batch,
                train_sampling_strategy="sequential",
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([_trl_row(examples[i]) for i in shuffled(len(examples), "0/0")]),
            processing_class=AutoTokenizer.from_pretrained(model_folder()),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.train()
    trainer.finish()
    memory = getrusage(RUSAGE_SELF).ru_maxrss * 1024
    _await_turn()
    trained = sum(turn.tokens for turn in turns)
    _answer(memory=memory, before=before, after=held_out_loss(trainer.model, held_out), trained=trained)


def _trl_row(row: Example) -> dict[str, list[int]]:
    labels = np.where(row.supervised, row.input_ids, -100)
    return {"input_ids": row.input_ids.tolist(), "labels": labels.tolist()}


def held_out_loss(model: Any, held_out: Sequence[Example]) -> float:
    """Returns the mean cross-entropy of the held-out rows' answers, computed in the same way for all trainers."""
    import torch

    from finetune_trainer.model.batches import micro_batch
    from finetune_trainer.model.loss import token_losses

    training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        losses = [token_losses(model, micro_batch([row], torch.device("cpu"))) for row in held_out]
    model.train(training)
    return torch.cat(losses).mean().item()


if __name__ == "__main__":
    main()
