"""Reports suspicious text in rows that can be used. Such text is never corrected and never stops the job.

Only the author of the rows knows if the text is wrong. A data set about encodings can contain mojibake on purpose. A
data set about HTML contains <s>, which is also a special token of Llama 2.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ftfy import badness

from finetune_trainer.rows.row_format import Row
from finetune_trainer.sources.findings import Findings

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
"""Control characters except tab, line ends and NEL, and the byte order mark inside a text."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOJIBAKE = "the text seems to be decoded with the wrong encoding"


FindToken = Callable[[str], str | None]
"""Returns the first special token in a text, or None."""


def special_tokens(tokenizer: Any) -> FindToken:
    """Returns a search for the tokenizer's special tokens. The tokenizer recognises them anywhere in a text."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    marks = sorted((token for token in special if not token.isspace()), key=len, reverse=True)
    firsts, pattern = {mark[0] for mark in marks}, re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def find(text: str) -> str | None:
        found = pattern.search(text) if any(first in text for first in firsts) else None
        return found[0] if found else None

    return find


class Suspicions:
    """Searches the text of every message for suspicious content."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: recognises its special tokens in a text in the same way as those from the chat template."""
        self._special = special_tokens(tokenizer)

    def note(self, rows: Iterable[Row], findings: Findings) -> Iterator[Row]:
        """Yields the rows unchanged, and records suspicious text in `findings`."""
        for row in rows:
            for kind, detail in self._of_row(row).items():
                findings.suspicious_row(row.place, kind, detail)
            yield row

    def _of_row(self, row: Row) -> dict[str, str]:
        """Returns the detail of each kind of suspicious text. Special tokens in a row of format Text are intended, so
        they are not reported here; advice counts them."""
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
        # ftfy's expression is slow, and it matches no ASCII text.
        if badness.is_bad(text):
            yield MOJIBAKE, ""
