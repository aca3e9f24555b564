"""A model on the held-out rows: the loss of the right answers, and the answers it gives itself."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from math import exp, inf
from time import perf_counter

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.reasons import FailureReason
from finetune_api.status import Metrics
from finetune_trainer.batches import micro_batch, pack
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.loss import token_losses
from finetune_trainer.mixing import shuffled
from finetune_trainer.prepared import Example
from finetune_trainer.progress import Progress

GENERATION_FACTOR = 8
"""Tokens held while answering, as a multiple of a micro-batch of training: without gradients only the keys and values
of each layer are kept."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote for one row."""

    text: str
    truncated: bool
    """Whether it was cut before it came to an end."""
    matches: bool
    """Whether it is the expected answer word for word, white space around it aside."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One model on the held-out rows, row by row."""

    losses: NDArray[np.float64]
    """Cross-entropy summed over each row's labels, in nats, shape [rows]."""
    labels: NDArray[np.int64]
    """Labels of each row, shape [rows]."""
    answers: list[Answer]
    seconds: float

    @property
    def loss(self) -> float:
        """Mean cross-entropy over all labels, in nats."""
        return float(self.losses.sum() / self.labels.sum())

    @property
    def metrics(self) -> Metrics:
        """As the status has it."""
        return Metrics(
            loss=round(self.loss, 6),
            perplexity=float(f"{perplexity(self.loss):.6g}"),
            exact_match=round(sum(answer.matches for answer in self.answers) / len(self.answers), 4),
            truncated=sum(answer.truncated for answer in self.answers),
        )


def perplexity(loss: float) -> float:
    """exp(loss), of a mean cross-entropy in nats."""
    return exp(loss) if loss < 700 else inf


def draw_rows(examples: Sequence[Example], max_rows: int, seed: int) -> list[Example]:
    """At most `max_rows` of the held-out rows, drawn by `seed`, in their own order."""
    drawn = shuffled(len(examples), f"evaluation/{seed}")[:max_rows]
    return [examples[i] for i in sorted(drawn)]


def evaluate(
    what: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    micro_batch_tokens: int,
    generation: GenerationConfig,
    accelerator: Accelerator,
) -> Measured:
    """Measures `model`, which messages call `what`, on `examples`: at least one. Raises TrainerFailure LossDiverged
    when its loss is not a number."""
    started = perf_counter()
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        losses, labels = row_losses(model, examples, micro_batch_tokens)
        if not np.isfinite(losses).all():
            raise TrainerFailure(FailureReason.LOSS_DIVERGED, f"The loss of {what} on held-out rows is not a number.")
        answers = write_answers(what, model, tokenizer, examples, GENERATION_FACTOR * micro_batch_tokens, generation)
    return Measured(losses, labels, answers, perf_counter() - started)


def row_losses(
    model: PreTrainedModel, examples: Sequence[Example], micro_batch_tokens: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Each row's summed cross-entropy and its number of labels."""
    losses, labels = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    for rows in pack([len(example.input_ids) for example in examples], micro_batch_tokens):
        batch = micro_batch([examples[row] for row in rows], model.device)
        documents = batch.label_documents.cpu().numpy()
        losses[rows] = np.bincount(documents, token_losses(model, batch).double().cpu().numpy(), len(rows))
        labels[rows] = np.bincount(documents, minlength=len(rows))
    return losses, labels


def write_answers(
    what: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    tokens: int,
    generation: GenerationConfig,
) -> list[Answer]:
    """The model's own answer to each row, in their order; about `tokens` tokens are in work at a time."""
    answers: dict[int, Answer] = {}
    progress = Progress(f"Answering with {what}", "rows", len(examples))
    for rows in generation_batches([example.prompt_length for example in examples], tokens, generation.max_new_tokens):
        prompts = [examples[row].input_ids[: examples[row].prompt_length] for row in rows]
        for row, written in zip(rows, _generate(model, prompts, generation), strict=True):
            answers[row] = read_answer(tokenizer, written, generation.eos_token_id, examples[row].answer)
        progress.advance(len(rows))
    return [answers[row] for row in range(len(examples))]


def generation_batches(prompt_lengths: Sequence[int], tokens: int, max_new_tokens: int) -> Iterator[list[int]]:
    """Rows to answer together: of like length, so that little is padding, the longest first, so that memory that is too
    small shows at once."""
    order = sorted(range(len(prompt_lengths)), key=lambda row: -prompt_lengths[row])
    while order:
        size = max(1, tokens // (prompt_lengths[order[0]] + max_new_tokens))
        yield order[:size]
        order = order[size:]


def _generate(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.int32]], generation: GenerationConfig
) -> list[list[int]]:
    """What the model writes after each prompt, within its context. Prompts are padded on the left, so that all end
    where writing starts."""
    longest = max(map(len, prompts))
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or inf
    within = copy(generation)
    within.max_new_tokens = min(generation.max_new_tokens, context - longest)
    input_ids = np.full((len(prompts), longest), generation.pad_token_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = prompt
        attention_mask[row, longest - len(prompt) :] = 1
    written: Tensor = model.generate(
        input_ids=torch.from_numpy(input_ids).to(model.device),
        attention_mask=torch.from_numpy(attention_mask).to(model.device),
        generation_config=within,
    )
    tokens: list[list[int]] = written[:, longest:].tolist()
    return tokens


def read_answer(
    tokenizer: PreTrainedTokenizerBase, written: Sequence[int], end_tokens: Sequence[int], expected: str
) -> Answer:
    """The answer up to the first end token; without one it was cut."""
    end = next((i for i, token in enumerate(written) if token in end_tokens), None)
    text = str(tokenizer.decode(written[:end], skip_special_tokens=True)).strip()
    return Answer(text, truncated=end is None, matches=text == expected.strip())
