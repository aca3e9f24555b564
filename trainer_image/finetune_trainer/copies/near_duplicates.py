"""Rows that say nearly the same: MinHash over word 5-grams, each candidate verified by its true Jaccard similarity.

Kept on disk are four bytes for each word and 64 for each row; in memory about 32 bytes a row."""

import os
import re
import unicodedata
from array import array
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from finetune_trainer.copies.clusters import BANDS, Clusters, width_of_bands

SHINGLE = 5
"""Words, or characters, in a row."""
VERY_SHORT, SHORT = 8, 20
"""Words below which a text is only like one that is equal, for a word or a digit more makes it another question; and
words below which a text's shingles are of characters: one changed word of twenty changes a third of the 5-grams of
words, so that rows so short would only be alike when they are equal."""
BLOCK, AT_ONCE = 4096, 1 << 20
"""Rows, and shingles, that are worked on at a time, or one row where it has more: rows may be whole documents."""
SAMPLED, TOO_FEW, COMMON = 2048, 100, 0.5
"""Rows looked at for the text of a template, rows below which there is none to be told, and the share of the rows a
shingle stands in to be one's: what an instruction repeats in most rows says nothing of which rows are alike."""
WIDEST_BAND = 16
MULTIPLIER = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio, as Knuth multiplies hashes."""
SEED = 42

# A word is a run of letters and digits; in scripts that put no spaces between words, a character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
_ASCII_WORDS = {code: " " for code in range(128) if not chr(code).isalnum()}


def shingles(text: str) -> NDArray[np.uint32]:
    """Hashes of the text's shingles, sorted, each once, at least one: of five words in a row; below 20 words of five
    characters in a row; below 8 words of the whole text. Case, punctuation, white space and Unicode's compatibility
    forms make no difference."""
    return _shingles([_units(text)])[0]


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    if text.isascii():
        return text.lower().translate(_ASCII_WORDS).split()
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _units(text: str) -> list[int]:
    """What shingles are made of, as numbers: hashes of words, or the characters of a short text; at least five."""
    words = words_of(text)
    if len(words) >= SHORT:
        return hashes_of(words)
    short = " ".join(words) or " ".join(text.split())
    if len(words) < VERY_SHORT:
        return [_hash_of_word(short)] * SHINGLE
    return [ord(character) for character in short]


def hashes_of(words: list[str]) -> list[int]:
    """The words as numbers, equal for equal words."""
    return list(map(_hash_of_word, words))


@lru_cache(maxsize=1 << 16)
def _hash_of_word(word: str) -> int:
    return crc32(word.encode())


def ngrams(rows: list[list[int]]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Hashes of every SHINGLE numbers that follow one another in a row, the row of each, and the place of its first
    number, counted over all rows end to end. Shape [n-grams], each, in the rows' order."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    units = np.fromiter(chain.from_iterable(rows), np.uint64, int(lengths.sum()))
    count = max(0, len(units) - SHINGLE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * np.uint64(MULTIPLIER) + units[offset : offset + count]
    # The finalizer of MurmurHash3, without which the low bits of neighbours would be alike.
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    row = np.repeat(np.arange(len(rows)), lengths)
    places = np.flatnonzero(row[:count] == row[len(row) - count :])
    return hashes[places], row[places], places


def _shingles(rows: list[list[int]]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The sorted sets of shingles of rows of units, end to end, and the size of each."""
    hashes, row, _ = ngrams(rows)
    keyed = np.sort((row.astype(np.uint64) << np.uint64(32)) | (hashes >> np.uint64(32)))
    keyed = keyed[np.concatenate([[True], keyed[1:] != keyed[:-1]])]
    sizes = np.bincount((keyed >> np.uint64(32)).astype(np.int64), minlength=len(rows))
    return keyed.astype(np.uint32), sizes.astype(np.uint32)


def jaccard(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    """Size of the intersection of two sets over that of their union; both sorted and not both empty."""
    shared = np.intersect1d(first, second, assume_unique=True).size
    return float(shared / (first.size + second.size - shared))


class NearDuplicates:
    """The rows' texts, in the order they are added, as sets of shingles in files of `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path, self._bands_path = folder / f"{name}.shingles", folder / f"{name}.bands"
        self._file = self._path.open("wb")
        self._sizes = array("I")
        self._waiting: list[list[int]] = []
        self._units = 0

    def add(self, text: str) -> None:
        """Adds the next row's text."""
        units = _units(text)
        self._waiting.append(units)
        self._units += len(units)
        if self._units >= AT_ONCE or len(self._waiting) == BLOCK:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            flat, sizes = _shingles(self._waiting)
            self._file.write(flat.tobytes())
            self._sizes.frombytes(sizes.tobytes())
            self._waiting, self._units = [], 0

    def join(self, clusters: Clusters, threshold: float, apart: NDArray[np.uint64] | None = None) -> None:
        """Joins the rows whose texts' Jaccard similarity is at least `threshold`; no more rows can be added then.
        `apart`: rows of different numbers are not joined, shape [rows]."""
        self._write()
        self._file.close()
        if len(self._sizes) < 2:
            return
        apart = np.zeros(len(self._sizes), dtype=np.uint64) if apart is None else apart
        sets = _Sets(_OnDisk(self._path), np.frombuffer(self._sizes, np.uint32))
        width = min(WIDEST_BAND, width_of_bands(threshold))
        self._bands_path.touch()
        bands = _OnDisk(self._bands_path)
        for start, end in sets.blocks():
            parted = (apart[start:end] * np.uint64(MULTIPLIER) >> np.uint64(32)).astype(np.uint32)
            for band, keys in enumerate(_band_keys(*sets.block(start, end), width)):
                bands.write(band * len(sets) + start, keys ^ parted)
        stored = (bands.read(band * len(sets), (band + 1) * len(sets)) for band in range(BANDS))
        clusters.join_alike(
            stored,
            lambda first, second: (
                bool(apart[first] == apart[second]) and jaccard(sets.row(first), sets.row(second)) >= threshold
            ),
        )


class _OnDisk:
    """Numbers in a file, read and written in stretches: mapped into memory, each page that was looked at would count as
    the process's own."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)

    def read(self, start: int, end: int) -> NDArray[np.uint32]:
        """The numbers [start, end)."""
        return np.frombuffer(os.pread(self._file.fileno(), 4 * (end - start), 4 * start), np.uint32)

    def write(self, start: int, numbers: NDArray[np.uint32]) -> None:
        """Writes numbers from `start` on."""
        os.pwrite(self._file.fileno(), numbers.tobytes(), 4 * start)


class _Sets:
    """Each row's shingles but for those of a template that most rows share."""

    def __init__(self, flat: _OnDisk, sizes: NDArray[np.uint32]) -> None:
        self._flat = flat
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._template = np.zeros(0, dtype=np.uint32)
        if len(self) >= TOO_FEW:
            sampled = np.unique(np.linspace(0, len(self) - 1, SAMPLED, dtype=np.int64))
            sampled = sampled[: max(TOO_FEW, np.count_nonzero(np.cumsum(sizes[sampled]) <= AT_ONCE))]
            found, rows = np.unique(np.concatenate([self.row(row) for row in sampled]), return_counts=True)
            self._template = found[rows > COMMON * len(sampled)]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def row(self, row: int) -> NDArray[np.uint32]:
        """One row's shingles, sorted: all of them where it has none but the template's."""
        whole = self._flat.read(int(self._starts[row]), int(self._starts[row + 1]))
        own = whole[np.isin(whole, self._template, invert=True)] if self._template.size else whole
        return own if own.size else whole

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges [start, end) of rows that are worked on at a time."""
        start = 0
        while start < len(self):
            within = int(np.searchsorted(self._starts, self._starts[start] + AT_ONCE, "right")) - 1
            end = max(start + 1, min(start + BLOCK, within))
            yield start, end
            start = end

    def block(self, start: int, end: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The shingles of rows [start, end) end to end, and where each begins, with the end of the last."""
        starts = self._starts[start : end + 1] - self._starts[start]
        flat = self._flat.read(int(self._starts[start]), int(self._starts[end]))
        if not self._template.size:
            return flat, starts
        kept = np.isin(flat, self._template, invert=True)
        sizes = np.diff(starts)
        kept |= np.repeat(np.add.reduceat(kept, starts[:-1], dtype=np.int64) == 0, sizes)
        return flat[kept], np.concatenate([[0], np.cumsum(np.add.reduceat(kept, starts[:-1], dtype=np.int64))])


def _band_keys(flat: NDArray[np.uint32], starts: NDArray[np.int64], width: int) -> NDArray[np.uint32]:
    """Keys of the rows' sketches, shape [BANDS, rows]: a hash of `width` numbers each."""
    sketches = RMinHash.digest_matrix_from_flat_token_hashes(
        flat.astype(np.uint64), starts.astype(np.uint64), BANDS * width, SEED
    )
    numbers = np.fromiter(chain.from_iterable(sketches.to_rows()), dtype=np.uint64).reshape(-1, BANDS, width)
    keys = np.zeros(numbers.shape[:2], dtype=np.uint64)
    for place in range(width):
        keys = (keys ^ numbers[:, :, place]) * np.uint64(MULTIPLIER)
    return (keys >> np.uint64(32)).astype(np.uint32).T
