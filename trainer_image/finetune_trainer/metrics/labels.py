"""Answers that are labels: precision, recall and F1, and which label is taken for which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Part = Literal["precision", "recall", "f1"]
OTHER = "(no label)"
"""What an answer that is none of the labels is called in the confusion table."""


@dataclass(frozen=True)
class LabelScore:
    """One label over all rows."""

    label: str
    precision: float
    recall: float
    f1: float
    expected: int
    """Rows it is the answer of."""


def label_counts(answers: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> Numbers:
    """What the metrics add up over rows, shape [rows, 3 x labels]: for each label 1 where it was given and right, 1
    where it was given, 1 where it was expected. An answer that is no label counts as given to none."""
    columns = {label: number for number, label in enumerate(labels)}
    given, wanted = np.zeros((2, len(answers), len(labels)))
    for side, texts in ((given, answers), (wanted, expected)):
        for row, text in enumerate(texts):
            if text in columns:
                side[row, columns[text]] = 1
    return np.hstack([given * wanted, given, wanted])


def per_label(totals: Numbers, part: Part) -> Numbers:
    """Precision, recall or F1 of each label, from totals of shape [..., 3 x labels]; shape [..., labels]. A share of
    nothing is 0, as in scikit-learn."""
    right, given, wanted = np.split(totals, 3, axis=-1)
    below = {"precision": given, "recall": wanted, "f1": (given + wanted) / 2}[part]
    shares: Numbers = np.divide(right, below, out=np.zeros_like(right), where=below > 0)
    return shares


def macro(totals: Numbers, part: Part) -> Numbers:
    """The mean of `per_label` over the labels that were expected at all; NaN where none was."""
    there = np.split(totals, 3, axis=-1)[2] > 0
    number = there.sum(axis=-1)
    summed = (per_label(totals, part) * there).sum(axis=-1)
    mean: Numbers = np.divide(summed, number, out=np.full(number.shape, np.nan), where=number > 0)
    return mean


def label_scores(totals: Numbers, labels: Sequence[str]) -> list[LabelScore]:
    """Each label's scores, from totals of shape [3 x labels]."""
    precision, recall, f1 = (per_label(totals, part).tolist() for part in ("precision", "recall", "f1"))
    expected = totals[2 * len(labels) :].astype(int).tolist()
    return [LabelScore(*scores) for scores in zip(labels, precision, recall, f1, expected, strict=True)]


def confusion(answers: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> Counter[tuple[str, str]]:
    """Rows by (label expected, label given)."""
    known = set(labels)
    named = ([text if text in known else OTHER for text in texts] for texts in (expected, answers))
    return Counter(zip(*named, strict=True))
