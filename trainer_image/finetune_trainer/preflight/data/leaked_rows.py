"""Finds leaked test rows: test rows whose question and answer both occur in a training row.

A shared question alone is not a leak, and neither is a shared answer. Structured questions (slot lists, templates) are
similar and have different answers. Labels repeat by nature. A prompt that all rows share proves nothing.

If a question is common (it occurs with other answers), the answer and the question must be the same, and the system
prompt nearly the same: two rows that ask the same about two documents are two questions. A question whose material is
in the system prompt counts as common. If an answer is common (it occurs with other questions), the question must be the
same. If both are common, the whole row must be the same, including the system prompt. A document has no question, so
only its text is compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.copies.deduplicate import asked, said
from finetune_trainer.copies.leaks import MOSTLY, leaks, with_several
from finetune_trainer.copies.near_duplicates import MULTIPLIER, SHINGLE, VERY_SHORT, hashes_of, ngrams, words_of
from finetune_trainer.copies.openings import over_material
from finetune_trainer.pod.liveness.heartbeat import attended, phase
from finetune_trainer.rows.row_format import DOCUMENT, Message, final_answer, system_of
from finetune_trainer.tokens.row_notes import RowNotes, plain
from finetune_trainer.tokens.row_store import Rows

SAME = 0.95
"""Two texts count as the same if they share at least this fraction of the words: 1 word in 20 may differ, and no word
in a text of fewer than 20 words."""
REPEATED = 3
"""An answer is common if at least this number of different questions have it. Fewer questions may be near-duplicates of
one row."""
DOCUMENTS = 2
"""Number of system prompts over which a question is asked from which on they can be its material."""
GROUP_TRIED = 100
"""Maximum number of rows of a group that are searched for the answer of a test row."""


def leaked_rows(test: Rows, train: Rows, notes: RowNotes) -> NDArray[np.int64]:
    """Returns for each test row the index of a row in `train` with the same question and answer, or -1. Shape [test
    rows]. `notes`: the notes on all rows of the store."""
    phase("searching for leaked test rows")
    search = _Search.of(test, train, notes)
    found = search.equal()
    texts = (search.text(row) for row in range(len(test)))
    covered = leaks(texts, len(train), lambda row: said(train.messages(row)), search.accepts)
    looked = found[: len(covered)]
    looked[looked < 0] = covered[looked < 0]
    for row in attended(np.flatnonzero(found < 0).tolist()):
        found[row] = search.in_group(row)
    return found


@dataclass(frozen=True, eq=False)
class _Search:
    """A search for test rows in the training rows."""

    test: Rows
    train: Rows
    keys: NDArray[Any]
    """Keys of the test rows, of type row_notes.KEYS. Shape [test rows]."""
    learned: NDArray[Any]
    """Keys of the training rows. Shape [train rows]."""
    open_question: NDArray[np.bool_]
    """Whether the question of a test row occurs with several answers, or with its material in the system prompt. Shape
    [test rows]."""
    common_answer: NDArray[np.bool_]
    """Whether the answer of a test row occurs with several questions. Shape [test rows]."""
    groups: dict[int, NDArray[np.int64]]
    """The first GROUP_TRIED training rows of each group that contains a test row, by group."""

    @classmethod
    def of(cls, test: Rows, train: Rows, notes: RowNotes) -> "_Search":
        keys, learned = notes.keys(test.placed["row"]), notes.keys(train.placed["row"])
        both = np.concatenate([keys, learned])
        # Each side is counted alone: a copy with a slightly changed answer must not make its question a common one.
        sides = (with_several(side["asked"], side["answer"], 2) for side in (keys, learned))
        open_questions = np.concatenate(list(sides))
        material = over_material(both["asked"], both["system"], DOCUMENTS)[: len(keys)]
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
            np.isin(keys["asked"], open_questions) | material,
            np.isin(keys["answer"], common_answers),
            {
                int(group): order[start : min(end, start + GROUP_TRIED)]
                for group, start, end in zip(test.placed["cluster"], starts, ends, strict=True)
            },
        )

    def equal(self) -> NDArray[np.int64]:
        """Returns the first training row with equal keys for each test row, or -1. Shape [test rows]."""
        whole: dict[tuple[int, ...], int] = {}
        alike: dict[tuple[int, ...], list[int]] = {}
        candidates = np.isin(self.learned["asked"], self.keys["asked"])
        candidates &= np.isin(self.learned["answer"], self.keys["answer"])
        for row in attended(np.flatnonzero(candidates).tolist()):
            system, question, answer = self.learned[row].item()
            if whole.setdefault((question, answer, system), row) == row:
                alike.setdefault((question, answer), []).append(row)
        found = np.full(len(self.keys), -1, dtype=np.int64)
        for row, (system, question, answer) in enumerate(attended(self.keys.tolist())):
            if self.open_question[row] and self.common_answer[row]:
                found[row] = whole.get((question, answer, system), -1)
            else:
                rows = alike.get((question, answer), [])
                found[row] = next((other for other in rows if self._same_material(row, other)), -1)
        return found

    def text(self, row: int) -> str:
        """Returns the text of a test row to search for: its question, or its answer if the question is common."""
        messages = self.test.messages(row)
        answer = _answers(messages)[-1]
        return answer if self.open_question[row] else asked(messages) or answer

    def accepts(self, row: int, learned: int, share: float) -> bool:
        """Returns whether a test row leaked to the training row `learned`, which covers `share` of its `text`."""
        if self._is_document(row):
            return True
        if self.open_question[row]:
            same_question = self.learned["asked"][learned] == self.keys["asked"][row]
            same_answer = share >= SAME and not self.common_answer[row]
            return bool(same_answer and same_question and self._same_material(row, learned))
        return (share >= SAME or not self.common_answer[row]) and self._holds_answer(row, learned)

    def in_group(self, row: int) -> int:
        """Returns a training row of the same group with the answer of the test row, or -1. The questions of a group are
        near-duplicates."""
        if not self._is_document(row) and (self.open_question[row] or self.common_answer[row]):
            return -1
        members = self.groups[int(self.test.placed["cluster"][row])].tolist()
        return next((other for other in members if self._is_document(row) or self._holds_answer(row, other)), -1)

    def _is_document(self, row: int) -> bool:
        return self.test.messages(row)[0].role == DOCUMENT

    def _same_material(self, row: int, learned: int) -> bool:
        """Returns whether a row with the same question as the test row is asked over the same material. If the question
        is common, the training row must contain nearly the same system prompt, or one of both rows has none."""
        if not self.open_question[row] or self.learned["system"][learned] == self.keys["system"][row]:
            return True
        mine, theirs = system_of(self.test.messages(row)), system_of(self.train.messages(learned))
        return not mine or not theirs or _within(mine, theirs)

    def _holds_answer(self, row: int, learned: int) -> bool:
        """Returns whether a training row contains the answer of the test row. An answer of at least 8 words only has to
        be covered mostly. In a document, the answer counts only if the question does not already contain the answer."""
        mine, theirs = self.test.messages(row), self.train.messages(learned)
        answer = final_answer(mine[-1].content)
        if theirs[0].role == DOCUMENT:
            return not _within(answer, asked(mine)) and _within(answer, theirs[0].content)
        return any(_answers_alike(answer, other) for other in _answers(theirs))


def _answers(messages: Sequence[Message]) -> list[str]:
    """Returns the answers of a row without their reasoning, or the text of a document."""
    return [final_answer(message.content) for message in messages if message.role in ("assistant", DOCUMENT)]


def _answers_alike(answer: str, other: str) -> bool:
    if plain(answer) == plain(other):
        return True
    return len(words_of(answer)) >= VERY_SHORT and _within(answer, other)


def _within(part: str, whole: str) -> bool:
    """Returns whether `whole` covers at least the share MOSTLY of the words of `part`. A `part` of fewer than 8 words
    must occur unchanged."""
    words, others = words_of(part), words_of(whole)
    if len(words) < VERY_SHORT:
        return f" {' '.join(words)} " in f" {' '.join(others)} "
    grams, row, places = ngrams([hashes_of(words), hashes_of(others)])
    shared = places[(row == 0) & np.isin(grams, grams[row == 1])]
    covered = np.zeros(len(words), dtype=np.bool_)
    for start in shared.tolist():
        covered[start : start + SHINGLE] = True
    return bool(covered.mean() >= MOSTLY)
