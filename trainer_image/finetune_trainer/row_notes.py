"""What of every row only its text can tell, in 25 bytes a row: numbers for the advice, and keys of what is said."""

import re
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.deduplicate import asked, normalised
from finetune_trainer.row_format import Message, final_answer

_FORMAT_MARKS = re.compile(
    r"### (?:Instruction|Response|Human|Assistant|User)\b"  # Alpaca, Vicuna
    r"|<\|(?:im_start|im_end|start_header_id|eot_id|user|assistant|system|end)\|>"  # ChatML, Llama 3, Phi
    r"|<(?:start|end)_of_turn>"  # Gemma
    r"|\[/?INST\]|<<SYS>>"  # Llama 2, Mistral
    r"|^(?:Human|Assistant|USER|ASSISTANT):",  # Anthropic's and Vicuna's transcripts
    re.MULTILINE,
)
KEYS = np.dtype([("system", "<u8"), ("asked", "<u8"), ("answer", "<u8")])
"""64-bit keys of a row's parts, equal for parts that are the same as `plain` has it: the system prompt, what is asked
(`deduplicate.asked`), and the last answer without its thought."""
_POINTS = re.compile(r"[.,;:!?。、]+(?=\s|$)")
LOOKED_AT = 2000
"""Characters of a text that are looked at: formats mark the beginning."""


def format_mark(text: str) -> str | None:
    """The first mark of a known prompt format in a text, if there is one."""
    found = _FORMAT_MARKS.search(text, 0, LOOKED_AT)
    return found.group() if found else None


def plain(text: str) -> str:
    """`text` without what makes no other question or answer of it: case, white space, Unicode's compatibility forms,
    and punctuation at the ends of words. Signs within it stay, as in 3-4 and 3+4."""
    return _POINTS.sub("", normalised(unicodedata.normalize("NFKC", text).casefold()))


class RowNotes:
    """Notes on rows, in the order they are added."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._marks = array("B")
        self._names: list[str | None] = [None]

    def add(self, messages: Sequence[Message]) -> None:
        """Notes what the next row says."""
        system = "\n".join(message.content for message in messages if message.role == "system")
        self._keys.extend(map(_key, (system, asked(messages), final_answer(messages[-1].content))))
        mark = next((mark for message in messages if (mark := format_mark(message.content))), None)
        if mark not in self._names:
            self._names.append(mark)
        self._marks.append(self._names.index(mark))

    def most_frequent_answer(self, rows: NDArray[np.int64]) -> int:
        """How many of `rows` have the answer that most of them have."""
        counts = np.unique(self.keys(rows)["answer"], return_counts=True)[1]
        return int(counts.max(initial=0))

    def keys(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """What `rows` say, as KEYS. Shape [rows]."""
        keys: NDArray[Any] = np.frombuffer(self._keys, KEYS)[rows]
        return keys

    def marked(self, rows: NDArray[np.int64]) -> Mapping[str, int]:
        """How many of `rows` carry a mark of a prompt format, by the first such mark of each."""
        counts = np.bincount(np.frombuffer(self._marks, np.uint8)[rows], minlength=len(self._names))
        return {name: int(count) for name, count in zip(self._names, counts, strict=True) if name and count}


def _key(text: str) -> int:
    return int.from_bytes(blake2b(plain(text).encode(), digest_size=8).digest(), "little")
