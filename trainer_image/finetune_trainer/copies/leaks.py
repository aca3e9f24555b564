"""Finds texts of test rows that a training row mostly contains. The groups of the split do not find all of them.

One changed word in 45 gives a Jaccard similarity of 0.78, and a question inside a longer row gives far less. A model
trained on such a row has still seen the test question. The measure is therefore the share of the question that one row
covers, as in the decontamination of Tülu 3 (Lambert et al. 2024, section 3.2; allenai/open-instruct,
decontamination/search.py). A word is covered if it is part of an n-gram that is also in the row. Tülu 3 uses n = 8 and
half of the words; PaLM uses 70% of the 8-grams (Chowdhery et al. 2022, section 8).

The n-grams of the test rows are in memory. The training rows are read once, a few at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.copies.clusters import CAP_SHARE, SMALLEST_CAP
from finetune_trainer.copies.near_duplicates import SAMPLED, SHINGLE, VERY_SHORT, hashes_of, ngrams, words_of
from finetune_trainer.pod.progress import Progress

MOSTLY = 0.75
"""Share of a question's words that one row must cover. One changed word leaves at most four other words uncovered, a
quarter of a question of 20 words. Near-duplicates of shorter questions are found by their characters. None of 748 real
questions is covered this much by one of 6,725 others, although some pairs differ in little more than numbers."""
MOST_WORDS = 1 << 20
"""Most words of all questions together, such as 10,000 questions of 100 words. They need at most about 120 MB."""
AT_ONCE = 1 << 17
"""Number of words of rows that are looked up at a time. A longer row is looked up alone."""
LOW_BITS = np.uint64((1 << 22) - 1)
"""The bits of an n-gram's hash with which most n-grams are excluded before the search."""


MOST_TRIED = 1000
"""Most texts that cover a question and are passed to `accepts`."""


def leaks(
    questions: Iterable[str],
    texts: int,
    text: Callable[[int], str],
    accepts: Callable[[int, int, float], bool] = lambda question, text, share: True,
) -> NDArray[np.int64]:
    """Returns for each question the number of the text that covers most of it, or -1 if no text covers MOSTLY of it.
    Shape [questions]: all questions, or the first ones that have MOST_WORDS words together. `text` returns one of the
    `texts` by its number, from 0. `accepts` returns whether a text counts, from the number of the question, the number
    of the text and the covered share. It is called for at most MOST_TRIED texts per question.

    N-grams in more texts, or questions, than the limit of a group are part of an instruction and are ignored. A
    question with fewer than 8 remaining words is not searched for."""
    index = _Index.of(questions)
    index = index.without(_common(index, texts, text))
    own = index.words()
    marks = np.zeros(int(LOW_BITS) + 1, dtype=np.bool_)
    marks[index.grams & LOW_BITS] = True
    best, most = np.full(index.count, -1, dtype=np.int64), np.zeros(index.count)
    tried = np.zeros(index.count, dtype=np.int64)
    progress = Progress("Looking for test rows in those to learn from", "rows", texts)
    for before, rows in _blocks(range(texts), text):
        grams, row, _ = ngrams(rows)
        near = marks[grams & LOW_BITS]
        pairs, words = _covered(*index.shared(grams[near], row[near]))
        number, question = np.divmod(pairs, index.count)
        share = words / own[question]
        for at in np.flatnonzero((share >= MOSTLY) & (own[question] >= VERY_SHORT)):
            asked, holding = int(question[at]), before + int(number[at])
            if share[at] > most[asked] and tried[asked] < MOST_TRIED:
                tried[asked] += 1
                if accepts(asked, holding, float(share[at])):
                    most[asked], best[asked] = share[at], holding
        progress.advance(len(rows))
    return best


@dataclass(frozen=True, eq=False)
class _Index:
    """Every n-gram of the questions, with each stretch of words that it covers without a gap. A word that is repeated a
    thousand times gives one stretch, and not a thousand places to compare with a thousand others."""

    count: int
    """Number of questions."""
    grams: NDArray[np.uint64]
    """Hash of the n-gram of each stretch, in ascending order. Shape [stretches]."""
    questions: NDArray[np.int64]
    """The question of each stretch. Shape [stretches]."""
    starts: NDArray[np.int64]
    """Index of the first word of each stretch, over the words of all questions. Shape [stretches]."""
    ends: NDArray[np.int64]
    """Index of the word after the last word of each stretch. Shape [stretches]."""

    @classmethod
    def of(cls, questions: Iterable[str]) -> Self:
        """Returns the index of the first questions, until they have MOST_WORDS words together."""
        rows: list[list[int]] = []
        words = 0
        for question in questions:
            rows.append(hashes_of(words_of(question)))
            words += len(rows[-1])
            if words >= MOST_WORDS:
                break
        grams, found, places = ngrams(rows)
        order = np.argsort(grams, kind="stable")
        grams, found, places = grams[order], found[order], places[order]
        goes_on = (grams[1:] == grams[:-1]) & (found[1:] == found[:-1]) & (places[1:] - places[:-1] <= SHINGLE)
        first = np.append(True, ~goes_on)[: len(grams)]
        last = np.append(~goes_on, True)[: len(grams)]
        return cls(len(rows), grams[first], found[first], places[first], places[last] + SHINGLE)

    def without(self, common: NDArray[np.uint64]) -> Self:
        """Returns the index without the n-grams in `common`."""
        kept = np.isin(self.grams, common, invert=True)
        return type(self)(self.count, self.grams[kept], self.questions[kept], self.starts[kept], self.ends[kept])

    def words(self) -> NDArray[np.int64]:
        """Returns the number of words that the n-grams of each question cover. Shape [questions]."""
        found = np.zeros(self.count, dtype=np.int64)
        questions, words = _covered(self.questions, self.starts, self.ends)
        found[questions] = words
        return found

    def shared(
        self, grams: NDArray[np.uint64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Returns every stretch of a question that an n-gram in `grams`, of the row in `rows`, covers: the key
        row * count + question, the start and the end. Shape [stretches] each."""
        start, end = (np.searchsorted(self.grams, grams, side) for side in ("left", "right"))
        known = end > start
        # An n-gram that is repeated in a row is searched for once.
        _, once = np.unique(rows[known] * len(self.grams) + start[known], return_index=True)
        start, end, rows = start[known][once], end[known][once], rows[known][once]
        counts = end - start
        at = np.repeat(start - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return np.repeat(rows, counts) * self.count + self.questions[at], self.starts[at], self.ends[at]


def _covered(
    keys: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns each key once, and the number of words that its stretches cover together. Shape [keys] each."""
    order = np.lexsort((starts, keys))
    keys, starts, ends = keys[order], starts[order], ends[order]
    last = np.flatnonzero(np.diff(keys, append=-1))
    # The words of each key are moved behind those of the key before, so that one pass finds the reach of the stretches.
    own = np.repeat(np.arange(len(last)), np.diff(last, prepend=-1)) * (ends.max(initial=0) + 1)
    reach = np.maximum.accumulate(own + ends)
    words = reach - np.maximum(own + starts, np.append(0, reach[:-1]))
    return keys[last], np.diff(np.cumsum(words)[last], prepend=0)


def _common(index: _Index, texts: int, text: Callable[[int], str]) -> NDArray[np.uint64]:
    """Returns the n-grams that are part of an instruction, from the questions and a sample of the texts."""
    sampled = np.unique(np.linspace(0, max(0, texts - 1), min(SAMPLED, texts), dtype=np.int64)).tolist()
    grams, numbers = [index.grams[:0]], [index.questions[:0]]
    for before, rows in _blocks(sampled, text):
        found, row, _ = ngrams(rows)
        known = np.isin(found, index.grams)
        grams.append(found[known])
        numbers.append(row[known] + before)
    told = _frequent(np.concatenate(grams), np.concatenate(numbers), len(sampled))
    return np.concatenate([told, _frequent(index.grams, index.questions, index.count)])


def _frequent(grams: NDArray[np.uint64], rows: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """Returns the n-grams that are in more of `count` rows than the limit of a group. `rows`: the row of each."""
    return with_several(grams, rows, max(SMALLEST_CAP, CAP_SHARE * count) + 1)


def with_several(
    values: NDArray[np.uint64], others: NDArray[np.int64] | NDArray[np.uint64], least: float
) -> NDArray[np.uint64]:
    """Returns the `values` that are paired with at least `least` different `others`, in ascending order. Both arguments
    have the shape [pairs]."""
    order = np.lexsort((others, values))
    values, others = values[order], others[order]
    once = np.append(True, (values[1:] != values[:-1]) | (others[1:] != others[:-1]))[: len(values)]
    found, counts = np.unique(values[once], return_counts=True)
    return found[counts >= least]


def _blocks(numbers: Iterable[int], text: Callable[[int], str]) -> Iterator[tuple[int, list[list[int]]]]:
    """Yields the texts of `numbers` in blocks of about AT_ONCE words: the number of texts before the block, and the
    hashes of the words of each text."""
    rows: list[list[int]] = []
    before = words = 0
    for number in numbers:
        rows.append(hashes_of(words_of(text(number))))
        words += len(rows[-1])
        if words >= AT_ONCE:
            yield before, rows
            before, words, rows = before + len(rows), 0, []
    if rows:
        yield before, rows
