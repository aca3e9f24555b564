"""Short trainings of tiny models, as one of several ranks takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetune_api.spec.method import Method
from finetune_api.spec.training import Training
from finetune_trainer.model.loading import load_model
from finetune_trainer.model.trainable import make_trainable, trained_weights
from finetune_trainer.training.loop import training_steps
from tests.integration.finetune_trainer.proofs.runs import counting_rows, in_fp32
from tests.unit.finetune_trainer.small_runs import fresh_accelerator, resolved

LENGTHS = [24, 7, 40, 12, 33, 18, 9, 51, 28, 15, 62]
METHODS = {
    "LoRA": {"lora": {"dropout": 0.1}},
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
    folder: Path, method: str, bf16: bool = False, lengths: Sequence[int] = LENGTHS, batch: int = 5, steps: int = 4
) -> Course:
    """Trains the model in `folder` in fp32, or in bf16 with fp32 weights of the adapter as a pod does."""
    wish = Method.model_validate(METHODS[method])
    base = load_model(folder, wish.type, torch.device("cpu"))
    accelerator = fresh_accelerator("bf16" if bf16 else "no")
    model = accelerator.prepare_model(make_trainable(base if bf16 else in_fp32(base), wish, wish.type, seed=0))
    settings = resolved(method=wish.type, total_steps=steps, micro_batch_tokens=64, learning_rate=2e-3)
    training = Training(global_batch_size=batch)
    done = list(training_steps(model, counting_rows(lengths), training, settings, accelerator))
    return Course(
        [step.loss for step in done],
        [step.gradient_norm for step in done],
        [step.tokens for step in done],
        {name: weight.detach().clone() for name, weight in trained_weights(model).items()},
    )
