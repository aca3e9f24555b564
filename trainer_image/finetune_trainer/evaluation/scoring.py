"""Measures a model on held-out rows: the loss of the expected answers, and the model's own answers."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from accelerate import Accelerator
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.reasons import FailureReason
from finetune_trainer.evaluation.generation import Prompt, write_answers
from finetune_trainer.handover.few_shot import Draw
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.row_losses import row_losses
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sizing.memory import GENERATION_FACTOR
from finetune_trainer.statistics.measurements import Answer, FewShot, Measured


@dataclass(frozen=True)
class Evaluator:
    """Measures every model of a job with the same settings."""

    tokenizer: PreTrainedTokenizerBase
    micro_batch_tokens: int
    generation: GenerationConfig
    accelerator: Accelerator

    def up_to(self, max_new_tokens: int) -> "Evaluator":
        """Returns a copy that generates at most `max_new_tokens` tokens for an answer."""
        generation = copy(self.generation)
        generation.max_new_tokens = max_new_tokens
        return replace(self, generation=generation)

    def measure(self, what: str, model: PreTrainedModel, rows: Sequence[Example], answers: bool = True) -> Measured:
        """Measures `model` on at least one row. `what`: its name in messages. `answers`: whether to generate answers.

        Raises TrainerFailure LossDiverged if the loss is not a finite number."""
        started = perf_counter()
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            losses, labels = row_losses(model, rows, self.micro_batch_tokens)
        if not np.isfinite(losses).all():
            finding = f"The loss of {what} on the held-out rows is not a finite number."
            raise TrainerFailure(FailureReason.LOSS_DIVERGED, finding)
        written = self.answers(what, model, rows) if answers else []
        return Measured(losses, labels, written, perf_counter() - started)

    def answers(
        self, what: str, model: PreTrainedModel, rows: Sequence[Example], prompts: Sequence[Prompt] | None = None
    ) -> list[Answer]:
        """Returns the model's answer to each row. `prompts`: one for each row, in place of the rows' own prompts. A row
        without a prompt (text to continue) gets an empty answer."""
        asked = [number for number, row in enumerate(rows) if row.prompt]
        ready = [rows[i].input_ids[: rows[i].prompt_length] if prompts is None else prompts[i] for i in asked]
        expected, tokens = [rows[i].final_answer for i in asked], GENERATION_FACTOR * self.micro_batch_tokens
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            written = write_answers(what, model, self.tokenizer, ready, expected, tokens, self.generation)
        answers = dict(zip(asked, written, strict=True))
        return [answers.get(row, Answer("", truncated=False, matches=False)) for row in range(len(rows))]

    def prompted(
        self, model: PreTrainedModel, rows: Sequence[Example], draws: Sequence[Draw], say: Callable[[str], None]
    ) -> FewShot:
        """Measures the base model with the prompts of each few-shot draw. Calls `say` with the name of each draw before
        it starts."""
        started, written = perf_counter(), []
        for number, draw in enumerate(draws, start=1):
            what = f"the base model prompted with {draw.examples} examples, draw {number} of {len(draws)}"
            say(what)
            written.append(self.answers(what, model, rows, draw.prompts))
        return FewShot(written, tuple(draw.examples for draw in draws), perf_counter() - started)
