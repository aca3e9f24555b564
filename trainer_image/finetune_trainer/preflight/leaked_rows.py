"""Test rows that leaked: a row to learn from holds both what they ask and what they answer.

A shared question alone is no leak, nor is a shared answer. Structured questions (slot lists, templates) are alike and
have different answers; labels repeat by nature; a prompt that all rows share says nothing. So where one of the two says
little, because rows with other answers, or other questions, have it as well, the other has to be the same; and where
both say little the whole row, its system prompt among it. Of a document, where nothing is asked, the text is all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.copies.deduplicate import asked, said
from finetune_trainer.copies.leaks import MOSTLY, leaks, with_several
from finetune_trainer.copies.near_duplicates import MULTIPLIER, SHINGLE, VERY_SHORT, hashes_of, ngrams, words_of
from finetune_trainer.rows.row_format import DOCUMENT, Message, final_answer
from finetune_trainer.tokens.row_notes import RowNotes, plain
from finetune_trainer.tokens.row_store import Rows

SAME = 0.95
"""Share of a text's words that has to be covered for it to be the same: one word in twenty may differ, and none of
fewer than twenty."""
REPEATED = 3
"""Different questions from which on an answer says little: fewer may be near copies of one row."""
GROUP_TRIED = 100
"""Rows of a group that are tried for a test row's answer."""


def leaked_rows(test: Rows, train: Rows, notes: RowNotes) -> NDArray[np.int64]:
    """For each test row the index of a row in `train` that holds its question and its answer; -1 where there is none.
    `notes`: on all rows of the store. Shape [test rows]."""
    search = _Search.of(test, train, notes)
    found = search.equal()
    texts = (search.text(row) for row in range(len(test)))
    covered = leaks(texts, len(train), lambda row: said(train.messages(row)), search.accepts)
    looked = found[: len(covered)]
    looked[looked < 0] = covered[looked < 0]
    for row in np.flatnonzero(found < 0).tolist():
        found[row] = search.in_group(row)
    return found


@dataclass(frozen=True, eq=False)
class _Search:
    """The rows to look for and to look in."""

    test: Rows
    train: Rows
    keys: NDArray[Any]
    """Of the test rows, as row_notes.KEYS. Shape [test rows]."""
    learned: NDArray[Any]
    """Of the rows to learn from. Shape [train rows]."""
    open_question: NDArray[np.bool_]
    """Test rows whose question has several answers. Shape [test rows]."""
    common_answer: NDArray[np.bool_]
    """Test rows whose answer several questions have. Shape [test rows]."""
    groups: dict[int, NDArray[np.int64]]
    """Rows to learn from by their group, of the groups that hold a test row; the first GROUP_TRIED of each."""

    @classmethod
    def of(cls, test: Rows, train: Rows, notes: RowNotes) -> "_Search":
        keys, learned = notes.keys(test.placed["row"]), notes.keys(train.placed["row"])
        both = np.concatenate([keys, learned])
        # Side by side, since a copy whose answer is changed a little does not make a question one of several answers.
        sides = (with_several(side["asked"], side["answer"], 2) for side in (keys, learned))
        open_questions = np.concatenate(list(sides))
        prompts = both["asked"] * np.uint64(MULTIPLIER) ^ both["system"]
        common_answers = with_several(both["answer"], prompts, REPEATED)
        groups = train.placed["cluster"]
        order = np.argsort(groups, kind="stable")
        starts, ends = (np.searchsorted(groups[order], test.placed["cluster"], side) for side in ("left", "right"))
        return cls(
            test,
            train,
            keys,
            learned,
            np.isin(keys["asked"], open_questions),
            np.isin(keys["answer"], common_answers),
            {
                int(group): order[start : min(end, start + GROUP_TRIED)]
                for group, start, end in zip(test.placed["cluster"], starts, ends, strict=True)
            },
        )

    def equal(self) -> NDArray[np.int64]:
        """The first row that asks and answers the same as each test row, or -1. Shape [test rows]."""
        first: dict[tuple[int, ...], int] = {}
        candidates = np.isin(self.learned["asked"], self.keys["asked"])
        candidates &= np.isin(self.learned["answer"], self.keys["answer"])
        for row in np.flatnonzero(candidates).tolist():
            system, question, answer = self.learned[row].item()
            first.setdefault((question, answer), row)
            first.setdefault((question, answer, system), row)
        little = self.open_question & self.common_answer
        return np.array(
            [
                first.get((question, answer, system) if whole else (question, answer), -1)
                for (system, question, answer), whole in zip(self.keys.tolist(), little.tolist(), strict=True)
            ],
            dtype=np.int64,
        )

    def text(self, row: int) -> str:
        """What of a test row is looked for: its question, or its answer where the question says little."""
        messages = self.test.messages(row)
        answer = _answers(messages)[-1]
        return answer if self.open_question[row] else asked(messages) or answer

    def accepts(self, row: int, learned: int, share: float) -> bool:
        """Whether row `learned`, which covers `share` of a test row's `text`, makes it a leak."""
        if self._is_document(row):
            return True
        if self.open_question[row]:
            same_question = self.learned["asked"][learned] == self.keys["asked"][row]
            return bool(share >= SAME and same_question and not self.common_answer[row])
        return (share >= SAME or not self.common_answer[row]) and self._holds_answer(row, learned)

    def in_group(self, row: int) -> int:
        """A row of the test row's group that answers it, or -1: rows of a group ask nearly the same."""
        if not self._is_document(row) and (self.open_question[row] or self.common_answer[row]):
            return -1
        members = self.groups[int(self.test.placed["cluster"][row])].tolist()
        return next((other for other in members if self._is_document(row) or self._holds_answer(row, other)), -1)

    def _is_document(self, row: int) -> bool:
        return self.test.messages(row)[0].role == DOCUMENT

    def _holds_answer(self, row: int, learned: int) -> bool:
        """Whether a row to learn from holds the test row's answer: as an answer of its own, or, from 8 words on,
        mostly; or in a document, where the question does not hold it already."""
        mine, theirs = self.test.messages(row), self.train.messages(learned)
        answer = final_answer(mine[-1].content)
        if theirs[0].role == DOCUMENT:
            return not _within(answer, asked(mine)) and _within(answer, theirs[0].content)
        return any(_answers_alike(answer, other) for other in _answers(theirs))


def _answers(messages: Sequence[Message]) -> list[str]:
    """What is answered in a row, without thoughts; a document as it is."""
    return [final_answer(message.content) for message in messages if message.role in ("assistant", DOCUMENT)]


def _answers_alike(answer: str, other: str) -> bool:
    if plain(answer) == plain(other):
        return True
    return len(words_of(answer)) >= VERY_SHORT and _within(answer, other)


def _within(part: str, whole: str) -> bool:
    """Whether `whole` covers MOSTLY of the words of `part`; one of fewer than 8 words, as it is."""
    words, others = words_of(part), words_of(whole)
    if len(words) < VERY_SHORT:
        return f" {' '.join(words)} " in f" {' '.join(others)} "
    grams, row, places = ngrams([hashes_of(words), hashes_of(others)])
    shared = places[(row == 0) & np.isin(grams, grams[row == 1])]
    covered = np.zeros(len(words), dtype=np.bool_)
    for start in shared.tolist():
        covered[start : start + SHINGLE] = True
    return bool(covered.mean() >= MOSTLY)
