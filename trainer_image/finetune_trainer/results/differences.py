"""Compares an answer with the expected answer, word by word."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

TOO_DIFFERENT = 0.4
"""Similarity (difflib's ratio) below which no differences are marked, because nearly every word would be marked."""
_TOKENS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """A part of a text: in both texts (same), only in the answer (extra), or only in the expected answer (missing)."""

    text: str
    kind: Literal["same", "extra", "missing"]


def differences(expected: str, answer: str) -> Sequence[Piece]:
    """Returns the answer in pieces, with the missing pieces at their places.

    Without the missing pieces, the pieces joined are the answer. An answer whose similarity to the expected answer is
    below TOO_DIFFERENT is a single piece."""
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
