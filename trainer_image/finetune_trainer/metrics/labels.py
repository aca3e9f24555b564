"""Metrics of answers that are labels: precision, recall, F1, and the confusion table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Part = Literal["precision", "recall", "f1"]
OTHER = "(no label)"
"""Name in the confusion table of an answer that is not a label."""


@dataclass(frozen=True)
class LabelScore:
    """The scores of one label over all rows."""

    label: str
    precision: float
    recall: float
    f1: float
    expected: int
    """Number of rows whose expected answer is this label."""


def label_counts(answers: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> Numbers:
    """Returns the statistics of each row, which are summed over rows. Shape [rows, 3 x labels].

    The three parts are, for each label: 1 if the label was given and correct, 1 if the label was given, 1 if the label
    was expected. An answer that is not a label counts for no label."""
    columns = {label: number for number, label in enumerate(labels)}
    given, wanted = np.zeros((2, len(answers), len(labels)))
    for side, texts in ((given, answers), (wanted, expected)):
        for row, text in enumerate(texts):
            if text in columns:
                side[row, columns[text]] = 1
    return np.hstack([given * wanted, given, wanted])


def per_label(totals: Numbers, part: Part) -> Numbers:
    """Returns precision, recall or F1 of each label, shape [..., labels], from totals of shape [..., 3 x labels]. A
    division by zero gives 0, as in scikit-learn."""
    right, given, wanted = np.split(totals, 3, axis=-1)
    below = {"precision": given, "recall": wanted, "f1": (given + wanted) / 2}[part]
    shares: Numbers = np.divide(right, below, out=np.zeros_like(right), where=below > 0)
    return shares


def macro(totals: Numbers, part: Part) -> Numbers:
    """Returns the mean of `per_label` over the labels that were expected. Returns NaN if no label was expected."""
    there = np.split(totals, 3, axis=-1)[2] > 0
    number = there.sum(axis=-1)
    summed = (per_label(totals, part) * there).sum(axis=-1)
    mean: Numbers = np.divide(summed, number, out=np.full(number.shape, np.nan), where=number > 0)
    return mean


def label_scores(totals: Numbers, labels: Sequence[str]) -> list[LabelScore]:
    """Returns the scores of each label, from totals of shape [3 x labels]."""
    precision, recall, f1 = (per_label(totals, part).tolist() for part in ("precision", "recall", "f1"))
    expected = totals[2 * len(labels) :].astype(int).tolist()
    return [LabelScore(*scores) for scores in zip(labels, precision, recall, f1, expected, strict=True)]


def confusion(answers: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> Counter[tuple[str, str]]:
    """Counts the rows by (expected label, given label)."""
    known = set(labels)
    named = ([text if text in known else OTHER for text in texts] for texts in (expected, answers))
    return Counter(zip(*named, strict=True))
