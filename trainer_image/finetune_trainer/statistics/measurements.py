"""Measurements of a model on rows: the loss of the expected answers, and the model's own answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.rows.row_format import final_answer


@dataclass(frozen=True)
class Answer:
    """A model's answer to one row."""

    text: str
    truncated: bool
    """Whether the answer was cut before it ended."""
    matches: bool
    """Whether the answer equals the expected answer word for word, without thoughts before it and white space around
    it."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The measurements of one model on some rows."""

    losses: NDArray[np.float64]
    """Cross-entropy summed over each row's labels, in nats, shape [rows]."""
    labels: NDArray[np.int64]
    """Number of labels of each row, shape [rows]."""
    answers: list[Answer]
    """Answers to all rows, or empty if no metric needs them."""
    seconds: float

    @property
    def loss(self) -> float:
        """Mean cross-entropy over all labels, in nats."""
        return float(self.losses.sum() / self.labels.sum())

    @property
    def likelihoods(self) -> NDArray[np.float64]:
        """Loss and number of labels of each row, shape [rows, 2]."""
        return np.stack([self.losses, self.labels], axis=1)


@dataclass(frozen=True, eq=False)
class FewShot:
    """The measurements of the base model prompted with examples, in several draws."""

    draws: Sequence[Sequence[Answer]]
    """For each draw, the answers to all rows."""
    shots: Sequence[int]
    """For each draw, the number of examples before each prompt."""
    seconds: float


@dataclass(frozen=True, eq=False)
class Measurements:
    """All models of a job on the same rows."""

    base: Measured
    tuned: Measured
    few_shot: FewShot | None = None
    """None where prompting was not measured."""
    quantized: Measured | None = None
    """Under QLoRA the base model in 4 bits, without answers, where `base` is that in bf16."""


def perplexity(loss: float) -> float:
    """Returns exp(loss). `loss`: mean cross-entropy in nats."""
    return exp(loss) if loss < 700 else inf


def texts(answers: Sequence[Answer]) -> list[str]:
    """Returns the text of each answer, without thoughts."""
    return [final_answer(answer.text) for answer in answers]
