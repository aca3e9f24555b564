"""Texts of test rows that mostly stand in a row to learn from, which the groups of the split do not all see.

One changed word in 45 leaves a Jaccard similarity of 0.78, and a question inside a longer row far less, yet a model
that learned either is tested on what it has seen. So what counts is how much of the question one row covers, as Tülu 3
was decontaminated (Lambert et al. 2024, section 3.2; allenai/open-instruct, decontamination/search.py): a word is
covered where it is part of an n-gram that stands in that row too. There n is 8 and half of the words are enough; PaLM
asks for 70% of the 8-grams (Chowdhery et al. 2022, section 8).

The n-grams of the test rows are held in memory; the rows to learn from are read once, a few at a time.
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
"""Share of a question's words that one row has to cover. One changed word takes at most four others with it, a quarter
of a question of 20, below which characters tell of near copies; of 748 real questions none is covered as much by one
of 6,725 others, though some differ from one in little but numbers."""
MOST_WORDS = 1 << 20
"""Words of questions that are looked for, together, such as 10,000 questions of 100: at most about 120 MB."""
AT_ONCE = 1 << 17
"""Words of rows that are looked up at a time, or one row."""
LOW_BITS = np.uint64((1 << 22) - 1)
"""By these of its hash most n-grams are passed over before any is searched for."""


MOST_TRIED = 1000
"""Texts that cover a question and are tried for its answer."""


def leaks(
    questions: Iterable[str],
    texts: int,
    text: Callable[[int], str],
    accepts: Callable[[int, int, float], bool] = lambda question, text, share: True,
) -> NDArray[np.int64]:
    """For each question the number of the text that covers most of it, or -1 where none covers MOSTLY. `text` gives one
    of the `texts` by its number, from 0. Shape [questions]: all, or the first that hold MOST_WORDS together.
    `accepts`: whether a text counts, by the numbers of question and text and the share covered; of each question at
    most MOST_TRIED are tried.

    What stands in more texts, or questions, than may hang together as copies is an instruction's, and counts on neither
    side; a question of which fewer than 8 words are left is not looked for."""
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
    """Every n-gram of the questions, once for each stretch of words that it covers without a gap: of a word that is
    repeated a thousand times over there is one stretch, not a thousand places to hold against a thousand others."""

    count: int
    """How many questions there are."""
    grams: NDArray[np.uint64]
    """Hashes, in rising order. Shape [stretches]."""
    questions: NDArray[np.int64]
    """The question of each. Shape [stretches]."""
    starts: NDArray[np.int64]
    """Its first word, of the words of all questions end to end. Shape [stretches]."""
    ends: NDArray[np.int64]
    """The word after its last. Shape [stretches]."""

    @classmethod
    def of(cls, questions: Iterable[str]) -> Self:
        """The n-grams of the first questions, until they hold MOST_WORDS."""
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
        """The same but for the n-grams in `common`."""
        kept = np.isin(self.grams, common, invert=True)
        return type(self)(self.count, self.grams[kept], self.questions[kept], self.starts[kept], self.ends[kept])

    def words(self) -> NDArray[np.int64]:
        """How many words of each question its n-grams cover. Shape [questions]."""
        found = np.zeros(self.count, dtype=np.int64)
        questions, words = _covered(self.questions, self.starts, self.ends)
        found[questions] = words
        return found

    def shared(
        self, grams: NDArray[np.uint64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Every stretch that one of `grams`, of `rows`, covers in a question: row * count + question, start, end."""
        start, end = (np.searchsorted(self.grams, grams, side) for side in ("left", "right"))
        known = end > start
        # What a row holds more than once is looked for once.
        _, once = np.unique(rows[known] * len(self.grams) + start[known], return_index=True)
        start, end, rows = start[known][once], end[known][once], rows[known][once]
        counts = end - start
        at = np.repeat(start - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return np.repeat(rows, counts) * self.count + self.questions[at], self.starts[at], self.ends[at]


def _covered(
    keys: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each key once, and how many words its stretches cover together."""
    order = np.lexsort((starts, keys))
    keys, starts, ends = keys[order], starts[order], ends[order]
    last = np.flatnonzero(np.diff(keys, append=-1))
    # Each key's words after all those of the key before, so that one pass tells how far the stretches so far reach.
    own = np.repeat(np.arange(len(last)), np.diff(last, prepend=-1)) * (ends.max(initial=0) + 1)
    reach = np.maximum.accumulate(own + ends)
    words = reach - np.maximum(own + starts, np.append(0, reach[:-1]))
    return keys[last], np.diff(np.cumsum(words)[last], prepend=0)


def _common(index: _Index, texts: int, text: Callable[[int], str]) -> NDArray[np.uint64]:
    """Those of the n-grams that are an instruction's, by the questions and a sample of the texts."""
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
    """The n-grams that stand in more of `count` rows than a group of copies may have. `rows`: the row of each."""
    return with_several(grams, rows, max(SMALLEST_CAP, CAP_SHARE * count) + 1)


def with_several(
    values: NDArray[np.uint64], others: NDArray[np.int64] | NDArray[np.uint64], least: float
) -> NDArray[np.uint64]:
    """The `values` that stand beside `least` or more different ones of `others`. Both of shape [pairs]; what is
    returned is in rising order."""
    order = np.lexsort((others, values))
    values, others = values[order], others[order]
    once = np.append(True, (values[1:] != values[:-1]) | (others[1:] != others[:-1]))[: len(values)]
    found, counts = np.unique(values[once], return_counts=True)
    return found[counts >= least]


def _blocks(numbers: Iterable[int], text: Callable[[int], str]) -> Iterator[tuple[int, list[list[int]]]]:
    """The texts of `numbers` as hashes of their words, AT_ONCE words together, and how many texts came before."""
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
