"""What looks wrong in a row that can be used: said with its place, never corrected and never a reason to stop.

Whether such text is a fault only who made the rows can say: a data set about broken encodings holds mojibake, one about
HTML the <s> that is also a special token of Llama 2.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ftfy import badness

from finetune_trainer.rows.row_format import Row
from finetune_trainer.sources.findings import Findings

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
"""Control characters but for tab, line ends and NEL, and the byte order mark within a text."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOJIBAKE = "the text seems to be decoded with the wrong encoding"


FindToken = Callable[[str], str | None]
"""Finds the first special token in a text."""


def special_tokens(tokenizer: Any) -> FindToken:
    """Finds the tokenizer's special tokens in texts: they are read as such wherever they stand."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    marks = sorted((token for token in special if not token.isspace()), key=len, reverse=True)
    firsts, pattern = {mark[0] for mark in marks}, re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def find(text: str) -> str | None:
        found = pattern.search(text) if any(first in text for first in firsts) else None
        return found[0] if found else None

    return find


class Suspicions:
    """What is looked for in the text of every message."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: its special tokens, where they stand in a text, are read as if the chat template wrote them."""
        self._special = special_tokens(tokenizer)

    def note(self, rows: Iterable[Row], findings: Findings) -> Iterator[Row]:
        """The rows as they are; what looks wrong goes to `findings`."""
        for row in rows:
            for kind, detail in self._of_row(row).items():
                findings.suspicious_row(row.source, kind, detail)
            yield row

    def _of_row(self, row: Row) -> dict[str, str]:
        """Each kind of what looks wrong, with its detail. Special tokens in a row of format Text are meant to be read
        as such, and advice counts them."""
        found = {kind: detail for message in row.messages for kind, detail in self._of(message.content)}
        if row.is_document:
            return found
        for message in row.messages:
            if special := self._special(message.content):
                found.setdefault("the text contains a special token of the model", special[:40])
        return found

    def _of(self, text: str) -> Iterator[tuple[str, str]]:
        if found := CONTROL.search(text):
            yield "the text contains a control character", f"U+{ord(found[0]):04X}"
        if text.isascii():
            return
        if REPLACEMENT in text:
            yield "the text contains U+FFFD: the original character was lost when the file was written", ""
        # The table of look-alikes ftfy goes by holds no ASCII sequence, and its expression is slow.
        if badness.is_bad(text):
            yield MOJIBAKE, ""
