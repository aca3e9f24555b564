"""Measures a model on held-out rows: the loss of the expected answers, and the model's own answers."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np
import torch
from accelerate import Accelerator
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.reasons import FailureReason
from finetune_trainer.evaluation.generation import Prompt, write_answers
from finetune_trainer.evaluation.kept_answers import KeptAnswers
from finetune_trainer.handover.few_shot import Draw
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.parameters.sharding import in_step
from finetune_trainer.model.row_losses import row_losses
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.pod.rank import place
from finetune_trainer.ranks.division import divided
from finetune_trainer.sizing.memory import GENERATION_FACTOR
from finetune_trainer.statistics.measurements import Answer, FewShot, Measured

Measure = Callable[[KeptAnswers | None], Measured]
"""Measures a model. The argument keeps the answers while they are written; None keeps none."""
Remember = Callable[[str, str, Measure], Measured]
"""Gives a measurement, from an earlier attempt or by calling the last argument. The first argument names it among the
measurements of its model, without hyphen. The second one is the model's name in messages."""


def measure_now(part: str, what: str, measure: Measure) -> Measured:
    """A Remember that remembers nothing."""
    return measure(None)


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

    def measure(
        self,
        what: str,
        model: PreTrainedModel,
        rows: Sequence[Example],
        answers: bool = True,
        kept: KeptAnswers | None = None,
    ) -> Measured:
        """Measures `model` on at least one row. `what`: its name in messages. `answers`: whether to generate answers.
        `kept`: see `write_answers`.

        Raises TrainerFailure LossDiverged if the loss is not a finite number."""
        started = perf_counter()
        phase(f"measuring {what}", steady=True)
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            losses, labels = row_losses(model, rows, self.micro_batch_tokens)
        if not np.isfinite(losses).all():
            finding = f"The loss of {what} on the held-out rows is not a finite number."
            raise TrainerFailure(FailureReason.LOSS_DIVERGED, finding)
        written = self.answers(what, model, rows, kept=kept) if answers else []
        return Measured(losses, labels, written, perf_counter() - started + seconds_of(kept))

    def answers(
        self,
        what: str,
        model: PreTrainedModel,
        rows: Sequence[Example],
        prompts: Sequence[Prompt] | None = None,
        kept: KeptAnswers | None = None,
    ) -> list[Answer]:
        """Returns the model's answer to each row. `prompts`: one for each row, in place of the rows' own prompts.
        `kept`: see `write_answers`. A row without a prompt (text to continue) gets an empty answer. Each rank answers a
        share of the rows, and keeps its own answers."""
        asked = [number for number, row in enumerate(rows) if row.prompt]
        ready = [rows[i].input_ids[: rows[i].prompt_length] if prompts is None else prompts[i] for i in asked]
        expected, tokens = [rows[i].final_answer for i in asked], GENERATION_FACTOR * self.micro_batch_tokens
        phase(f"generating answers with {what}", steady=True)
        model.eval()
        here = place()
        who = what if here.ranks == 1 else f"{what} on {here}"

        def write(share: Sequence[int]) -> list[Answer]:
            asking, wanted = [ready[i] for i in share], [expected[i] for i in share]
            with in_step(model):
                return write_answers(who, model, self.tokenizer, asking, wanted, tokens, self.generation, kept)

        with torch.no_grad(), self.accelerator.autocast(), kept.kept_at_the_end() if kept else nullcontext():
            written = divided([len(prompt) for prompt in ready], write)
        answers = dict(zip(asked, written, strict=True))
        return [answers.get(row, Answer("", truncated=False, matches=False)) for row in range(len(rows))]

    def prompted(
        self,
        model: PreTrainedModel,
        rows: Sequence[Example],
        draws: Sequence[Draw],
        say: Callable[[str], None],
        remember: Remember = measure_now,
    ) -> FewShot:
        """Measures the base model with the prompts of each few-shot draw. Calls `say` with the name of each draw before
        it starts."""

        def measure(what: str, draw: Draw, kept: KeptAnswers | None) -> Measured:
            started = perf_counter()
            say(what)
            answers = self.answers(what, model, rows, draw.prompts, kept)
            seconds = perf_counter() - started + seconds_of(kept)
            return Measured(np.zeros(0), np.zeros(0, dtype=np.int64), answers, seconds)

        found = []
        for number, draw in enumerate(draws, start=1):
            what = f"the base model prompted with {draw.examples} examples, draw {number} of {len(draws)}"
            found.append(remember(f"draw{number}", what, partial(measure, what, draw)))
        shots = tuple(draw.examples for draw in draws)
        return FewShot([each.answers for each in found], shots, sum(each.seconds for each in found))


def seconds_of(kept: KeptAnswers | None) -> float:
    """Returns the time that earlier attempts needed for the answers that this one took over."""
    return kept.earlier_seconds if kept else 0.0
