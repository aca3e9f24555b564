"""Where an answer differs from the expected one, word by word."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

TOO_DIFFERENT = 0.4
"""Similarity (difflib's ratio) below which marking every word would say nothing."""
_TOKENS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """A run of text: in both, only in the answer, or only expected."""

    text: str
    kind: Literal["same", "extra", "missing"]


def differences(expected: str, answer: str) -> Sequence[Piece]:
    """The answer in pieces, with what is missing in its place. Joined without the missing pieces they are the answer;
    one that has little in common with the expected one is a single piece."""
    first, second = _TOKENS.findall(expected), _TOKENS.findall(answer)
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    if matcher.ratio() < TOO_DIFFERENT:
        return [Piece(answer, "same")] if answer else []
    pieces = []
    for tag, start, end, begin, stop in matcher.get_opcodes():
        if tag == "equal":
            pieces.append(Piece("".join(second[begin:stop]), "same"))
            continue
        if end > start:
            pieces.append(Piece("".join(first[start:end]), "missing"))
        if stop > begin:
            pieces.append(Piece("".join(second[begin:stop]), "extra"))
    return pieces
