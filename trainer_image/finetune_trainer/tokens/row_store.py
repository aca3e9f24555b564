"""Stores tokenized rows on disk, so that memory does not grow with the number of rows.

A store is a folder. The files `tokens` (int32), `supervised` (one byte per token) and `texts` (JSON) contain the data
of all rows, one row after another. The file `rows` contains one RECORD per row. `files.json` contains the names of the
source files."""

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.pod.liveness.heartbeat import beat
from finetune_trainer.rows.row_format import Message, final_answer

RECORD = np.dtype(
    [
        ("start", "<i8"),
        ("text_start", "<i8"),
        ("tokens", "<i4"),
        ("supervised", "<i4"),
        ("prompt_length", "<i4"),
        ("text_bytes", "<i4"),
        ("file", "<i4"),
        ("line", "<u4"),
        ("mixture", "<i4"),
        ("key", "<u8"),
        ("digest", "S16"),
    ]
)
"""A row in 68 bytes: start and length of its tokens and texts, and its source. `key`: the key of its prompt. `digest`:
blake2b of its tokens and of which tokens are trained on."""
PACK = struct.Struct("<qqiiiiiIiQ16s").pack
"""Packs one RECORD as bytes. For one row at a time, this is many times faster than NumPy."""
STRETCH = 1 << 16
"""Number of records in one read."""
PLACED = np.dtype([("row", "<i8"), ("cluster", "<i4"), ("leaked", "?")])
"""A row on a side of the split: its index in the store, its cluster, and Example.leaked."""
TOKENS, SUPERVISED, TEXTS, ROWS, FILES = "tokens", "supervised", "texts", "rows", "files.json"


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """A tokenized row."""

    input_ids: NDArray[np.int32]
    """All tokens of prompt and answers. Shape [tokens]."""
    supervised: NDArray[np.bool_]
    """Whether each token is trained on: the tokens of an answer and its end of turn. Shape [tokens]. Never True at
    0."""
    prompt_length: int
    """Number of tokens before the last answer. Generation starts after these tokens."""
    messages: tuple[Message, ...]
    """The messages. The last message is the last answer."""
    place: str
    """Place of the row, as FILE:LINE."""
    cluster: int = 0
    """Number of the group of rows with the same or nearly the same prompt. A group is on one side of the split."""
    mixture: int = 0
    """Index of its source in dataset.train, dataset.validation or dataset.test."""
    leaked: bool = False
    """For a test row: whether its question and answer also occur in a training row, see `leaked_rows`."""

    @property
    def prompt(self) -> str:
        """The question, or the conversation up to the last answer, as readable text."""
        asked = [message for message in self.messages[:-1] if message.role != "system"]
        if len(asked) == 1:
            return asked[0].content
        return "\n".join(f"{message.role}: {message.content}" for message in asked)

    @property
    def answer(self) -> str:
        """The last answer, unchanged."""
        return self.messages[-1].content

    @property
    def final_answer(self) -> str:
        """The last answer without its reasoning. Metrics compare this text."""
        return final_answer(self.answer)


class StoreWriter:
    """Appends rows to a new store in `folder`. A context manager: all rows are on disk when it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._stack = ExitStack()
        self._tokens, self._supervised, self._texts, self._rows = (
            self._stack.enter_context((folder / name).open("wb", buffering=1 << 20))
            for name in (TOKENS, SUPERVISED, TEXTS, ROWS)
        )
        self._files: dict[str, int] = {}
        self._start = self._text_start = self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, example: Example, key: bytes) -> None:
        """Appends a row. `key`: at least 8 bytes, equal for rows with the same prompt."""
        beat()
        tokens = example.input_ids.astype("<i4", copy=False).tobytes()
        supervised = example.supervised.tobytes()
        messages = [message if not message.learned else message[:2] for message in example.messages]
        text = json.dumps(messages, ensure_ascii=False).encode()
        file, _, line = example.place.rpartition(":")
        record = PACK(
            self._start,
            self._text_start,
            len(supervised),
            supervised.count(1),
            example.prompt_length,
            len(text),
            self._files.setdefault(file, len(self._files)),
            int(line),
            example.mixture,
            int.from_bytes(key[:8], "little"),
            blake2b(tokens + supervised, digest_size=16).digest(),
        )
        self._tokens.write(tokens)
        self._supervised.write(supervised)
        self._texts.write(text)
        self._rows.write(record)
        self._start += len(supervised)
        self._text_start += len(text)
        self._count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()
        (self._folder / FILES).write_text(json.dumps(list(self._files)))


class RowStore:
    """A complete store, for reading. Tokens are mapped into memory. Texts are read with their row."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = (folder / ROWS).open("rb")
        self._count = (folder / ROWS).stat().st_size // RECORD.itemsize
        self._tokens = _mapped(folder / TOKENS, np.dtype("<i4"))
        self._supervised = _mapped(folder / SUPERVISED, np.dtype(np.bool_))
        self._texts = (folder / TEXTS).open("rb")
        self._files: list[str] = json.loads((folder / FILES).read_text())

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> NDArray[Any]:
        """Returns a field of RECORD for every row. Shape [rows]. The records are read in parts of STRETCH rows. If they
        were mapped into memory, all of them (68 bytes per row) would count as memory of the process."""
        column = np.empty(len(self), RECORD[name])
        for start in range(0, len(self), STRETCH):
            records = self._records(start, min(STRETCH, len(self) - start))
            column[start : start + len(records)] = records[name]
        return column

    def _records(self, start: int, count: int) -> NDArray[Any]:
        size = RECORD.itemsize
        return np.frombuffer(os.pread(self._rows.fileno(), count * size, start * size), RECORD)

    def messages(self, row: int) -> tuple[Message, ...]:
        """Returns the messages of the row with index `row`, without reading its tokens."""
        record = self._records(row, 1)[0]
        at, size = record["text_start"].item(), record["text_bytes"].item()
        return tuple(Message(*message) for message in json.loads(os.pread(self._texts.fileno(), size, at)))

    def example(self, row: int, cluster: int = 0, leaked: bool = False) -> Example:
        """Returns the row with index `row`, counted from 0."""
        start, _, tokens, _, prompt_length, _, file, line, mixture, _, _ = self._records(row, 1)[0].item()
        return Example(
            input_ids=self._tokens[start : start + tokens],
            supervised=self._supervised[start : start + tokens],
            prompt_length=prompt_length,
            messages=self.messages(row),
            place=f"{self._files[file]}:{line}",
            cluster=cluster,
            mixture=mixture,
            leaked=leaked,
        )


class Rows(Sequence[Example]):
    """A selection of rows of a store, in any order. A row may occur twice."""

    def __init__(self, store: RowStore, placed: NDArray[Any], all_supervised: bool = False) -> None:
        """`placed`: of type PLACED, shape [rows]. `all_supervised`: train on every token of a row except the first."""
        self.store, self.placed, self._all = store, placed, all_supervised

    def whole(self) -> "Rows":
        """Returns the same rows with every token trained on."""
        return Rows(self.store, self.placed, all_supervised=True)

    def marked(self, leaked: NDArray[np.bool_]) -> "Rows":
        """Returns the same rows with Example.leaked set to `leaked`, of shape [rows]."""
        placed = self.placed.copy()
        placed["leaked"] = leaked
        return Rows(self.store, placed, self._all)

    def __len__(self) -> int:
        return len(self.placed)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Example | Rows":
        if isinstance(index, slice):
            return Rows(self.store, self.placed[index], self._all)
        example = self.store.example(*self.placed[index].item())
        return replace(example, supervised=np.arange(len(example.input_ids)) > 0) if self._all else example

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def messages(self, index: int) -> tuple[Message, ...]:
        """Returns the messages of one row, without reading its tokens."""
        return self.store.messages(int(self.placed["row"][index]))

    def column(self, name: str) -> NDArray[Any]:
        """Returns a field of RECORD for every row, without reading the rows. Shape [rows]."""
        column: NDArray[Any] = self.store.column(name)[self.placed["row"]]
        return self.column("tokens") - 1 if self._all and name == "supervised" else column


def lengths(rows: Sequence[Example]) -> NDArray[np.int64]:
    """Returns the number of tokens of each row, shape [rows]. Rows in a store are not read."""
    if isinstance(rows, Rows):
        return rows.column("tokens").astype(np.int64)
    return np.array([len(row.input_ids) for row in rows], dtype=np.int64)


def prompt_lengths(rows: Sequence[Example]) -> NDArray[np.int64]:
    """Returns the number of tokens before the last answer of each row, shape [rows]. Rows in a store are not read."""
    if isinstance(rows, Rows):
        return rows.column("prompt_length").astype(np.int64)
    return np.array([row.prompt_length for row in rows], dtype=np.int64)


def supervised_counts(rows: Sequence[Example]) -> NDArray[np.int64]:
    """Returns the number of tokens that are trained on in each row, shape [rows]. Rows in a store are not read."""
    if isinstance(rows, Rows):
        return rows.column("supervised").astype(np.int64)
    return np.array([row.supervised.sum() for row in rows], dtype=np.int64)


def mixtures(rows: Sequence[Example]) -> NDArray[np.int64]:
    """Returns the index of the source of each row, shape [rows]. Rows in a store are not read."""
    if isinstance(rows, Rows):
        return rows.column("mixture").astype(np.int64)
    return np.array([row.mixture for row in rows], dtype=np.int64)


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not path.stat().st_size:  # nothing to map
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r"))
