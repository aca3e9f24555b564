"""Short trainings of tiny models, as one of several ranks takes them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from finetune_api.spec.method import Method
from finetune_api.spec.training import Training
from finetune_trainer.checkpoints.training_state import live_state, misfit, restore
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.sharding import shard
from finetune_trainer.model.parameters.trainable import make_trainable, trained_weights, use_gradient_checkpointing
from finetune_trainer.pod.rank import is_first
from finetune_trainer.ranks.shards import whole
from finetune_trainer.training.loop import Step, training_steps
from finetune_trainer.training.optimizer import make_optimizer
from tests.integration.finetune_trainer.proofs.runs import counting_rows, in_fp32
from tests.unit.finetune_trainer.small_runs import fresh_accelerator, resolved

LENGTHS = [24, 7, 40, 12, 33, 18, 9, 51, 28, 15, 62]
METHODS = {
    "LoRA": {"lora": {"dropout": 0.1}},
    "LoRA without dropout": {},
    "LoRA, biases and head": {"lora": {"bias": "All", "modulesToSave": ["lm_head"]}},
    "DoRA": {"lora": {"useDora": True}},
    "QLoRA": {"type": "QLoRA"},
    "Full": {"type": "Full"},
}


@dataclass(frozen=True)
class Course:
    """What a rank saw of a training."""

    losses: list[float]
    norms: list[float]
    """The norm of the gradient of each step."""
    tokens: list[int]
    weights: dict[str, Tensor]
    """The trained weights at the end."""


def course(
    folder: Path,
    method: str,
    bf16: bool = False,
    lengths: Sequence[int] = LENGTHS,
    batch: int = 5,
    sharded: bool = False,
    checkpointing: bool = False,
) -> Course:
    """Trains the model in `folder` in fp32, or in bf16 with fp32 weights of the adapter as a pod does. `sharded`:
    whether each rank has only a shard of the weights."""
    model, accelerator = trainable(folder, method, bf16, sharded)
    use_gradient_checkpointing(model, checkpointing)
    return course_of(model, list(steps_of(model, method, accelerator, 4, lengths, batch)))


def resumed_course(folder: Path, method: str, sharded: bool, state: Path, last: int) -> Course:
    """Takes steps in fp32 until step `last` of 8, from the state in the file `state` if it exists, and replaces it."""
    model, accelerator = trainable(folder, method, False, sharded)
    optimizer, done, words = make_optimizer(model, Training()), [], state.with_suffix(".json")
    if words.exists():
        numbers, steps = json.loads(words.read_text())
        assert misfit(model, optimizer, state, numbers) is None
        restore(model, optimizer, state, numbers)
        done = [Step(**step) for step in steps]
    for step in steps_of(model, method, accelerator, 8, optimizer=optimizer, done=tuple(done)):
        done.append(step)
        if step.number == last:
            break
    tensors, numbers = live_state(model, optimizer)
    every = {name: whole(tensor).clone() for name, tensor in tensors.items()}
    if is_first():
        save_file(every, state)
        words.write_text(json.dumps([numbers, [asdict(step) for step in done]]))
    return course_of(model, done)


def trainable(folder: Path, method: str, bf16: bool, sharded: bool) -> tuple[Any, Accelerator]:
    """The model in `folder` as it is trained, and the Accelerator of its number format."""
    wish = Method.model_validate(METHODS[method])
    base = load_model(folder, wish.type, torch.device("cpu"))
    accelerator = fresh_accelerator("bf16" if bf16 else "no")
    model = make_trainable(base if bf16 else in_fp32(base), wish, wish.type, seed=0)
    if sharded:
        shard(model, accelerator.device, bf16)
    return accelerator.prepare_model(model), accelerator


def steps_of(
    model: Any,
    method: str,
    accelerator: Accelerator,
    steps: int,
    lengths: Sequence[int] = LENGTHS,
    batch: int = 5,
    **more: Any,
) -> Iterator[Step]:
    """The steps of a training of `steps` steps."""
    kind = Method.model_validate(METHODS[method]).type
    settings = resolved(method=kind, total_steps=steps, micro_batch_tokens=64, learning_rate=2e-3)
    training = Training(global_batch_size=batch)
    return training_steps(model, counting_rows(lengths), training, settings, accelerator, **more)


def course_of(model: Any, done: Sequence[Step]) -> Course:
    """What the rank saw."""
    return Course(
        [step.loss for step in done],
        [step.gradient_norm for step in done],
        [step.tokens for step in done],
        {name: whole(weight.detach()).clone() for name, weight in trained_weights(model).items()},
    )
