"""Finds exact duplicates, rows with the same question, and near-duplicates."""

import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_api.spec.row_cleaning import Deduplicate, Near
from finetune_trainer.copies.clusters import Clusters
from finetune_trainer.copies.embeddings import Embeddings, SentenceModel
from finetune_trainer.copies.near_duplicates import NearDuplicates
from finetune_trainer.copies.openings import Openings, material
from finetune_trainer.pod.liveness.heartbeat import attended
from finetune_trainer.rows.row_format import Message, Row
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import JobStorage


class SeenKeys:
    """A set of 64-bit keys with eight bytes per key. Most keys are in a sorted array, new keys in a Python set."""

    RECENT = 1 << 18

    def __init__(self) -> None:
        self._sorted = array("Q")
        self._recent: set[int] = set()

    def add(self, key: int) -> bool:
        """Adds a key. Returns whether it was new."""
        place = bisect_left(self._sorted, key)
        if key in self._recent or (place < len(self._sorted) and self._sorted[place] == key):
            return False
        self._recent.add(key)
        if len(self._recent) == self.RECENT:
            together = np.concatenate([self._sorted, np.fromiter(self._recent, np.uint64, self.RECENT)])
            self._sorted = array("Q", np.sort(together).tobytes())
            self._recent = set()
        return True


def drop_copies(rows: Iterable[Row], seen: SeenKeys, findings: Findings) -> Iterator[Row]:
    """Yields the rows whose key is not yet in `seen`, and adds their keys to it. Counts the other rows."""
    for row in rows:
        if seen.add(row_key(row)):
            yield row
        else:
            findings.duplicates += 1


def row_key(row: Row) -> int:
    """Returns a 64-bit key of a row. The keys of two rows are equal if the same messages are trained and the rows
    differ only in white space and in the composition of Unicode characters. The probability that two different rows of
    ten million have the same key is three in a million."""
    texts = (f"{m.role}{' not learned' * (not m.learned)}\n{normalised(m.content)}" for m in row.messages)
    return int.from_bytes(_digest(texts)[:8])


def prompt_key(row: Row) -> bytes:
    """Equal for rows that begin with the same question: what the user says before the first answer, whatever the
    system prompt. Such rows have to stay on one side of the split: a conversation cut off at several lengths, or a
    question with several answers, would else be learned on one side and asked on the other. A document's is the whole.
    Where the question is a template, `Openings` tells the rows apart by the rest of what they are asked with.

    Rows with the same answer have different keys, because in classification nearly all rows share their answers."""
    return _digest([normalised(question(row.messages))])


def question(messages: Sequence[Message]) -> str:
    """Returns the first message of the user, or the whole text of a row without a user."""
    return next((message.content for message in messages if message.role == "user"), messages[-1].content)


def asked(messages: Sequence[Message]) -> str:
    """Returns all messages before the last answer except the system prompt, or "" for a row without a user."""
    return "\n".join(message.content for message in messages[:-1] if message.role != "system")


def said(messages: Sequence[Message]) -> str:
    """Returns all messages of a row except the system prompt."""
    return "\n".join(message.content for message in messages if message.role != "system")


def normalised(text: str) -> str:
    """Returns `text` in Unicode's NFC, with one space for each run of white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _digest(parts: Iterable[str]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.digest()


SIMILAR_WORDS = 0.8
"""Default of `deduplicate.threshold`: the threshold of Lee et al. 2022 for near-duplicates of web text."""
SIMILAR_MEANING = 0.9
"""Default of `deduplicate.threshold` with embeddings: the default of SemHash, which has the same purpose. With
all-MiniLM-L6-v2 it finds 15 of 20 paraphrases of short questions, and none of 20 pairs that share only their topic
(docs/benchmarks.md). A threshold of 0.95 finds 5 paraphrases."""


@dataclass(frozen=True, eq=False)
class Alike:
    """The similar rows among all rows."""

    groups: NDArray[np.uint64]
    """Equal for rows with the same question or, unless `near` is Keep, with nearly the same question. Does not depend
    on the order of the rows. Shape [rows]."""
    repeats: NDArray[np.bool_]
    """True for near-duplicates of an earlier row. Shape [rows]."""
    crowded: NDArray[np.bool_]
    """True for rows with near-duplicates in another group, because their own group was full. Shape [rows]."""


class NearCopies:
    """Finds near-duplicates among the rows, as `dataset.deduplicate` says."""

    def __init__(self, wish: Deduplicate, storage: JobStorage, folder: Path) -> None:
        """`folder`: for temporary files. Raises TrainerFailure if the sentence model cannot be loaded."""
        texts: Callable[[str], NearDuplicates | Embeddings] = partial(NearDuplicates, folder)
        self._threshold = wish.threshold or SIMILAR_WORDS
        if uri := wish.sentence_model:
            model = SentenceModel(storage, uri, folder / "sentence-model")
            texts = partial(Embeddings, model, folder)
            self._threshold = wish.threshold or SIMILAR_MEANING
        self._questions = None if wish.near is Near.KEEP else texts("questions")
        self._rows = texts("rows") if wish.near is Near.DROP else None
        self._materials = None if wish.near is Near.KEEP else partial(texts, "materials")
        self._openings = Openings()
        self._last: Sequence[Message] | None = None
        self._further = array("B")

    def add(self, messages: Sequence[Message]) -> None:
        """Adds the next row. For each further part of the same row, call it again with the same object `messages`."""
        further = messages is self._last
        self._last = messages
        self._further.append(further)
        if further:
            return
        self._openings.add(messages)
        if self._questions:
            self._questions.add(question(messages))
        if self._rows:
            self._rows.add(said(messages))

    def find(self, questions: NDArray[np.uint64], messages: Callable[[int], Sequence[Message]]) -> Alike:
        """What is alike of all rows and parts of rows. `questions`: the rows' prompt keys, shape [rows]. `messages`:
        reads the messages of a row by its number. What holds of a row holds of its parts."""
        begins = np.frombuffer(self._further, np.bool_) == 0
        numbers = np.flatnonzero(begins)
        found = self._find(questions[numbers], lambda row: messages(int(numbers[row])))
        if len(numbers) == len(begins):
            return found
        row = np.cumsum(begins, dtype=np.int32) - 1
        return Alike(found.groups[row], found.repeats[row], found.crowded[row])

    def _find(self, questions: NDArray[np.uint64], messages: Callable[[int], Sequence[Message]]) -> Alike:
        keys = self._openings.keys(questions)
        clusters = Clusters(len(keys))
        clusters.join_equal(keys)
        templates = np.flatnonzero(keys != questions)
        if self._questions:
            # A row whose question is a template is near no other row because of this question.
            apart = np.zeros(len(keys), dtype=np.uint64)
            apart[templates] = templates + 1
            self._questions.join(clusters, self._threshold, apart)
        crowded = self._join_materials(clusters, templates, questions, messages)
        first = clusters.roots()
        groups = np.full(len(keys), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(groups, first, keys)
        crowded |= clusters.crowded()
        return Alike(groups[first], self._repeats(keys, first, templates), crowded)

    def _join_materials(
        self,
        clusters: Clusters,
        rows: NDArray[np.int64],
        questions: NDArray[np.uint64],
        messages: Callable[[int], Sequence[Message]],
    ) -> NDArray[np.bool_]:
        """Joins those of `rows` that ask one question, a template, over nearly the same material. Returns `crowded` of
        all rows, as Alike has it."""
        crowded = np.zeros(len(questions), dtype=np.bool_)
        if self._materials and len(rows):
            texts, within = self._materials(), Clusters(len(rows))
            for row in attended(rows.tolist()):
                texts.add(material(messages(row)))
            texts.join(within, self._threshold, questions[rows])
            for row, root in zip(rows.tolist(), rows[within.roots()].tolist(), strict=True):
                clusters.join(root, row)
            crowded[rows] = within.crowded()
        return crowded

    def _repeats(
        self, keys: NDArray[np.uint64], first: NDArray[np.int32], templates: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Under Drop by question and answer; else by question, where rows that ask exactly the same count once.
        `templates`: the rows whose question is a template, which repeat only a row of their own group."""
        if self._rows:
            clusters, apart = Clusters(len(keys)), np.zeros(len(keys), dtype=np.uint64)
            apart[templates] = first[templates] + 1
            self._rows.join(clusters, self._threshold, apart)
            return np.not_equal(clusters.roots(), np.arange(len(keys)))
        asked_first = np.zeros(len(keys), dtype=np.bool_)
        asked_first[np.unique(keys, return_index=True)[1]] = True
        repeats: NDArray[np.bool_] = asked_first & (keys[first] != keys)
        return repeats
