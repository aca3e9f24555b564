"""What a model did on rows: how likely it took the right answers to be, and the answers it gave itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.rows.row_format import final_answer


@dataclass(frozen=True)
class Answer:
    """What a model wrote for one row."""

    text: str
    truncated: bool
    """Whether it was cut before it came to an end."""
    matches: bool
    """Whether it is the expected answer word for word, thoughts before it and white space around it aside."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One model on some rows, row by row."""

    losses: NDArray[np.float64]
    """Cross-entropy summed over each row's labels, in nats, shape [rows]."""
    labels: NDArray[np.int64]
    """Labels of each row, shape [rows]."""
    answers: list[Answer]
    """Of all rows, or of none where no metric asks for them."""
    seconds: float

    @property
    def loss(self) -> float:
        """Mean cross-entropy over all labels, in nats."""
        return float(self.losses.sum() / self.labels.sum())

    @property
    def likelihoods(self) -> NDArray[np.float64]:
        """Each row's loss and labels, shape [rows, 2]."""
        return np.stack([self.losses, self.labels], axis=1)


@dataclass(frozen=True, eq=False)
class FewShot:
    """The base model on the same rows, prompted with examples in several draws."""

    draws: Sequence[Sequence[Answer]]
    """Draw by draw the answers to all rows."""
    shots: Sequence[int]
    """Draw by draw the examples before each prompt."""
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
    """exp(loss), of a mean cross-entropy in nats."""
    return exp(loss) if loss < 700 else inf


def texts(answers: Sequence[Answer]) -> list[str]:
    """What was written, without thoughts."""
    return [final_answer(answer.text) for answer in answers]
