"""Copies: rows that say the same, rows that ask the same, and rows that nearly do."""

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
from finetune_trainer.pod.storage import JobStorage
from finetune_trainer.rows.row_format import Message, Row
from finetune_trainer.sources.findings import Findings


class SeenKeys:
    """A set of 64-bit keys that takes eight bytes for each: most lie sorted, the last few in a set of Python's own."""

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
    """The rows whose key is not yet in `seen`, which grows; the others are counted."""
    for row in rows:
        if seen.add(row_key(row)):
            yield row
        else:
            findings.duplicates += 1


def row_key(row: Row) -> int:
    """64 bits that are equal for rows of which the same is learned and that differ in nothing but white space and the
    way Unicode is composed. That any two of ten million other rows are equal too has a probability of three in a
    million."""
    texts = (f"{m.role}{' not learned' * (not m.learned)}\n{normalised(m.content)}" for m in row.messages)
    return int.from_bytes(_digest(texts)[:8])


def prompt_key(row: Row) -> bytes:
    """Equal for rows that begin with the same question: what the user says before the first answer, whatever the
    system prompt. Such rows have to stay on one side of the split: a conversation cut off at several lengths, or a
    question with several answers, would else be learned on one side and asked on the other. A document's is the whole.
    Where the question is a template, `Openings` tells the rows apart by the rest of what they are asked with.

    Rows that only share their answer are not alike in this sense: in classification nearly all of them do."""
    return _digest([normalised(question(row.messages))])


def question(messages: Sequence[Message]) -> str:
    """What the user says before the first answer; of a row that nobody asks in, all of it."""
    return next((message.content for message in messages if message.role == "user"), messages[-1].content)


def asked(messages: Sequence[Message]) -> str:
    """All that is said before the last answer but for the system prompt; of a row that nobody asks in, nothing."""
    return "\n".join(message.content for message in messages[:-1] if message.role != "system")


def said(messages: Sequence[Message]) -> str:
    """All that is said in a row but for the system prompt."""
    return "\n".join(message.content for message in messages if message.role != "system")


def normalised(text: str) -> str:
    """`text` in Unicode's NFC, each run of white space a single space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _digest(parts: Iterable[str]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.digest()


SIMILAR_WORDS = 0.8
"""Default of `deduplicate.threshold`: what Lee et al. 2022 take for near copies of web text."""
SIMILAR_MEANING = 0.9
"""Its default for embeddings: SemHash's, which looks for the same. With all-MiniLM-L6-v2 it holds 15 of 20 paraphrases
of short questions alike and none of 20 pairs that only share their topic (docs/benchmarks.md); 0.95 held 5."""


@dataclass(frozen=True, eq=False)
class Alike:
    """Which of all rows are alike."""

    groups: NDArray[np.uint64]
    """Equal for rows that ask the same or, unless that is not wanted, nearly the same; whatever the rows' order.
    Shape [rows]."""
    repeats: NDArray[np.bool_]
    """Rows that nearly repeat an earlier one. Shape [rows]."""
    crowded: NDArray[np.bool_]
    """Rows with near copies in another group, because their own was full. Shape [rows]."""


class NearCopies:
    """Looks for near copies among the rows it is given, as `dataset.deduplicate` says."""

    def __init__(self, wish: Deduplicate, storage: JobStorage, folder: Path) -> None:
        """`folder`: for files to work with. Raises TrainerFailure where the sentence model cannot be loaded."""
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
        """What the next row says; the very same messages again for each further part of that row."""
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
            for row in rows.tolist():
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
