"""The runs that the proofs compare: our loop, and TRL's SFTTrainer on the same rows in the same order."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Training
from finetune_api.status.preflight import Resolved
from finetune_trainer.handover.mixing import Mixture
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.batches import rows_of_step
from finetune_trainer.training.loop import training_steps
from finetune_trainer.training.schedule import learning_rate
from tests.unit.finetune_trainer import small_runs
from tests.unit.finetune_trainer.small_runs import example, fresh_accelerator

STEPS = 30
PEAK = 5e-3
TRAINING = Training(global_batch_size=8, weight_decay=1.0)
"""The recipe compared. So much decay, the most there may be, shows within 30 steps even in 4 bits."""


def counting_rows(lengths: Sequence[int]) -> list[Example]:
    """Rows that count upwards through twenty tokens from different starts: a model this small learns them in a few
    steps, so that what is compared is a loss that falls. The last two thirds of each are learned."""
    rows = []
    for seed, length in enumerate(lengths):
        row = example(length, max(1, 2 * length // 3), seed)
        rows.append(replace(row, input_ids=(4 + (np.arange(length) + 7 * seed) % 20).astype(np.int32)))
    return rows


def resolved(method: MethodType = MethodType.LORA, steps: int = STEPS, micro_batch_tokens: int = 128) -> Resolved:
    """What preflight would have resolved for a run of `steps` steps with three of warm-up."""
    return small_runs.resolved(
        method=method,
        learning_rate=PEAK,
        warmup_steps=3,
        total_steps=steps,
        max_sequence_length=64,
        micro_batch_tokens=micro_batch_tokens,
    )


def our_losses(model: PreTrainedModel | PeftModel, rows: Sequence[Example], settings: Resolved) -> list[float]:
    """The loss of each step of our loop."""
    return [step.loss for step in training_steps(model, rows, TRAINING, settings, fresh_accelerator())]


def trl_losses(
    model: PreTrainedModel | PeftModel, rows: Sequence[Example], settings: Resolved, tokenizer: Path, scratch: Path
) -> list[float]:
    """The loss of each step of TRL's SFTTrainer, with TRL's own optimizer, decay groups, padding, clipping and
    accumulation (two micro-batches of four rows); only the order of the rows and the learning rate are ours."""
    # It would look for a tracker to report to, and ask the hub about the model.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from datasets import Dataset
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    mixture, batch = Mixture((len(rows),)), TRAINING.global_batch_size
    order = [row for step in range(settings.total_steps) for row in rows_of_step(mixture, batch, TRAINING.seed, step)]
    losses: list[float] = []

    class Recording(SFTTrainer):  # type: ignore[misc]
        def create_scheduler(self, num_training_steps: int, optimizer: object = None) -> LambdaLR:
            def share_of_peak(step: int) -> float:
                return learning_rate(step, 1.0, settings.warmup_steps, settings.total_steps)

            self.lr_scheduler = LambdaLR(self.optimizer.optimizer, share_of_peak)
            return self.lr_scheduler

        def training_step(self, *args: object, **kwargs: object) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)  # already divided by the step's supervised tokens
            losses.append(loss.item())
            return loss

    accumulation = 2
    trainer = Recording(
        model,
        args=SFTConfig(
            output_dir=str(scratch),
            max_steps=settings.total_steps,
            per_device_train_batch_size=batch // accumulation,
            gradient_accumulation_steps=accumulation,
            learning_rate=settings.learning_rate,
            weight_decay=TRAINING.weight_decay,
            max_grad_norm=TRAINING.max_grad_norm,
            train_sampling_strategy="sequential",
            use_cpu=True,
            gradient_checkpointing=False,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([_trl_row(rows[row]) for row in order]),
        processing_class=AutoTokenizer.from_pretrained(tokenizer),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # TRL makes the adapter of a 4-bit model bf16
    trainer.train()
    return [sum(losses[i : i + accumulation]) for i in range(0, len(losses), accumulation)]


def _trl_row(row: Example) -> dict[str, list[int]]:
    labels = [int(token) if learned else -100 for token, learned in zip(row.input_ids, row.supervised, strict=True)]
    return {"input_ids": row.input_ids.tolist(), "labels": labels}


def in_fp32(model: PreTrainedModel) -> PreTrainedModel:
    """Everything but the 4-bit weights in fp32: in bf16 two orders of adding up differ by more than is allowed."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = torch.float32
    return model
