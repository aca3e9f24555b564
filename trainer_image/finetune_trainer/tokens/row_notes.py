"""Notes on the text of each row, in 26 bytes per row: numbers for the advice, and keys of the texts."""

import json
import re
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from enum import IntEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.copies.deduplicate import asked, normalised
from finetune_trainer.rows.row_format import DOCUMENT, Message, final_answer, system_of
from finetune_trainer.rows.suspicions import FindToken

_FORMAT_MARKS = re.compile(
    r"### (?:Instruction|Response|Human|Assistant|User)\b"  # Alpaca, Vicuna
    r"|<\|(?:im_start|im_end|start_header_id|eot_id|user|assistant|system|end)\|>"  # ChatML, Llama 3, Phi
    r"|<(?:start|end)_of_turn>"  # Gemma
    r"|\[/?INST\]|<<SYS>>"  # Llama 2, Mistral
    r"|^(?:Human|Assistant|USER|ASSISTANT):",  # Anthropic's and Vicuna's transcripts
    re.MULTILINE,
)
KEYS = np.dtype([("system", "<u8"), ("asked", "<u8"), ("answer", "<u8")])
"""64-bit keys of the parts of a row: the system prompt, the question (`deduplicate.asked`), and the last answer without
its reasoning. Keys are equal if `plain` gives the same text."""
_POINTS = re.compile(r"[.,;:!?。、]+(?=\s|$)")
_OF_MODELS = re.compile(r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|\[/?INST\]|<<SYS>>")
"""Matches marks that some models read as one token or were trained on."""
NAMES_FILE = "names.json"
NAMES = 200
"""Maximum number of different marks that are counted. Any text can be between `<|` and `|>`."""
LOOKED_AT = 2000
"""Characters at the start of a text that are searched. Prompt formats have a mark at the start."""


class Mark(IntEnum):
    """The kind of a mark in a row."""

    FORMAT = 0
    """A mark of a prompt format in a question or an answer."""
    OWN = 1
    """A special token of the model in a row of format Text."""
    FOREIGN = 2
    """A mark of another prompt format in a row of format Text."""


def format_mark(text: str) -> str | None:
    """Returns the first mark of a known prompt format in a text, or None."""
    found = _FORMAT_MARKS.search(text, 0, LOOKED_AT)
    return found.group() if found else None


def plain(text: str) -> str:
    """Returns `text` without differences that do not change its meaning: case, white space, Unicode compatibility forms
    and punctuation at the end of words. Characters inside words stay, as in 3-4 and 3+4."""
    return _POINTS.sub("", normalised(unicodedata.normalize("NFKC", text).casefold()))


class RowNotes:
    """Notes on rows, in the order in which the rows are added."""

    def __init__(self, special: FindToken = lambda text: None) -> None:
        """`special`: finds the model's special tokens."""
        self._special = special
        self._keys, self._marks, self._documents = array("Q"), array("B"), array("B")
        self._names: list[tuple[Mark, str] | None] = [None]

    def add(self, messages: Sequence[Message]) -> None:
        """Adds the notes on the next row."""
        self._keys.extend(map(_key, (system_of(messages), asked(messages), final_answer(messages[-1].content))))
        mark = self._mark(messages)
        if mark not in self._names:
            if len(self._names) >= NAMES:
                mark = mark and (mark[0], "others")
            self._names += [mark] * (mark not in self._names)
        self._marks.append(self._names.index(mark))
        self._documents.append(messages[0].role == DOCUMENT)

    def save(self, folder: Path) -> None:
        """Writes the notes to the new folder `folder`."""
        folder.mkdir()
        for name, values in (("keys", self._keys), ("marks", self._marks), ("documents", self._documents)):
            np.save(folder / f"{name}.npy", np.frombuffer(values, values.typecode))
        (folder / NAMES_FILE).write_text(json.dumps(self._names))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Returns the notes that `save` wrote. No notes can be added to them."""
        notes = cls()
        for name in ("keys", "marks", "documents"):
            values: array[int] = getattr(notes, f"_{name}")
            values.frombytes(np.load(folder / f"{name}.npy").astype(values.typecode).tobytes())
        names = json.loads((folder / NAMES_FILE).read_text())
        notes._names = [(Mark(name[0]), name[1]) if name else None for name in names]
        return notes

    def most_frequent_answer(self, rows: NDArray[np.int64]) -> int:
        """Returns the number of `rows` with the most frequent answer."""
        counts = np.unique(self.keys(rows)["answer"], return_counts=True)[1]
        return int(counts.max(initial=0))

    def keys(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Returns the keys of `rows`, of type KEYS. Shape [rows]."""
        keys: NDArray[Any] = np.frombuffer(self._keys, KEYS)[rows]
        return keys

    def documents(self, rows: NDArray[np.int64]) -> int:
        """Returns the number of `rows` of format Text."""
        return int(np.frombuffer(self._documents, np.uint8)[rows].sum())

    def marked(self, rows: NDArray[np.int64], kind: Mark) -> Mapping[str, int]:
        """Returns the number of `rows` with a mark of this kind, by the first such mark of each row."""
        counts = np.bincount(np.frombuffer(self._marks, np.uint8)[rows], minlength=len(self._names))
        pairs = zip(self._names, counts, strict=True)
        return {mark[1]: int(count) for mark, count in pairs if mark and mark[0] is kind and count}

    def _mark(self, messages: Sequence[Message]) -> tuple[Mark, str] | None:
        if messages[0].role != DOCUMENT:
            mark = next((mark for message in messages if (mark := format_mark(message.content))), None)
            return (Mark.FORMAT, mark) if mark else None
        text = messages[0].content[:LOOKED_AT]
        if own := self._special(text):
            return Mark.OWN, own
        found = _OF_MODELS.search(text)
        return (Mark.FOREIGN, found[0]) if found else None


def _key(text: str) -> int:
    return int.from_bytes(blake2b(plain(text).encode(), digest_size=8).digest(), "little")
