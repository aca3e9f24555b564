"""Copies: rows that say the same, and rows that ask the same."""

import unicodedata
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from finetune_trainer.findings import Findings
from finetune_trainer.row_format import Row


def drop_copies(rows: Iterable[Row], seen: set[bytes], findings: Findings) -> Iterator[Row]:
    """The rows that are not yet in `seen`, which grows; the others are counted."""
    for row in rows:
        key = row_key(row)
        if key in seen:
            findings.duplicates += 1
        else:
            seen.add(key)
            yield row


def row_key(row: Row) -> bytes:
    """Equal for rows that differ in nothing but white space and the way Unicode is composed."""
    return _digest(f"{message.role}\n{normalised(message.content)}" for message in row.messages)


def prompt_key(row: Row) -> bytes:
    """Equal for rows that begin with the same question: what the user says before the first answer, whatever the
    system prompt. Such rows have to stay on one side of the split: a conversation cut off at several lengths, or a
    question with several answers, would else be learned on one side and asked on the other.

    Rows that only share their answer are not alike in this sense: in classification nearly all of them do."""
    return _digest([normalised(next(message.content for message in row.messages if message.role == "user"))])


def normalised(text: str) -> str:
    """`text` in Unicode's NFC, each run of white space a single space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _digest(parts: Iterable[str]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.digest()
