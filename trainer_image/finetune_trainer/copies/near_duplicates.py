"""Finds near-duplicates with MinHash over word 5-grams. Each candidate is verified with its exact Jaccard similarity.

Needs four bytes per word and 64 bytes per row on disk, and about 32 bytes per row in memory."""

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
from finetune_trainer.pod.liveness.heartbeat import attended

SHINGLE = 5
"""Number of consecutive words, or characters, of a shingle."""
VERY_SHORT, SHORT = 8, 20
"""A text with fewer than VERY_SHORT words is a near-duplicate only of an equal text, because one more word or digit
makes it another question. A text with fewer than SHORT words has shingles of characters: one changed word of twenty
changes a third of its 5-grams of words, so such texts would be similar only if they were equal."""
BLOCK, AT_ONCE = 4096, 1 << 20
"""Number of rows, and of shingles, that are processed at a time. A row with more shingles is processed alone."""
SAMPLED, TOO_FEW, COMMON = 2048, 100, 0.5
"""Number of rows in which template text is searched for, fewest rows for this search, and the share of the rows that
must have a shingle of the template. An instruction that is in most rows does not show which rows are similar."""
WIDEST_BAND = 16
MULTIPLIER = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio (Knuth's multiplicative hashing)."""
SEED = 42

# A word is a run of letters and digits; in scripts that put no spaces between words, a character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
_ASCII_WORDS = {code: " " for code in range(128) if not chr(code).isalnum()}


def shingles(text: str) -> NDArray[np.uint32]:
    """Returns the hashes of the text's shingles, sorted, without repeats, at least one. A shingle is five consecutive
    words; below 20 words five consecutive characters; below 8 words the whole text. Case, punctuation, white space and
    Unicode's compatibility forms are ignored."""
    return _shingles([_units(text)])[0]


def words_of(text: str) -> list[str]:
    """Returns the words of a text in the form in which they are compared."""
    if text.isascii():
        return text.lower().translate(_ASCII_WORDS).split()
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _units(text: str) -> list[int]:
    """Returns the parts of shingles as numbers, at least five: hashes of words, or characters of a short text."""
    words = words_of(text)
    if len(words) >= SHORT:
        return hashes_of(words)
    short = " ".join(words) or " ".join(text.split())
    if len(words) < VERY_SHORT:
        return [_hash_of_word(short)] * SHINGLE
    return [ord(character) for character in short]


def hashes_of(words: list[str]) -> list[int]:
    """Returns a number for each word, equal for equal words."""
    return list(map(_hash_of_word, words))


@lru_cache(maxsize=1 << 16)
def _hash_of_word(word: str) -> int:
    return crc32(word.encode())


def ngrams(rows: list[list[int]]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the hash of every SHINGLE consecutive numbers of a row, the row, and the index of the first number over
    all rows. Shape [n-grams] each, in the order of the rows."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    units = np.fromiter(chain.from_iterable(rows), np.uint64, int(lengths.sum()))
    count = max(0, len(units) - SHINGLE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * np.uint64(MULTIPLIER) + units[offset : offset + count]
    # The finalizer of MurmurHash3. Without it, the low bits of neighbours would be similar.
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    row = np.repeat(np.arange(len(rows)), lengths)
    places = np.flatnonzero(row[:count] == row[len(row) - count :])
    return hashes[places], row[places], places


def _shingles(rows: list[list[int]]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Returns the sorted sets of shingles of all rows, one after another, and the size of each set."""
    hashes, row, _ = ngrams(rows)
    keyed = np.sort((row.astype(np.uint64) << np.uint64(32)) | (hashes >> np.uint64(32)))
    keyed = keyed[np.concatenate([[True], keyed[1:] != keyed[:-1]])]
    sizes = np.bincount((keyed >> np.uint64(32)).astype(np.int64), minlength=len(rows))
    return keyed.astype(np.uint32), sizes.astype(np.uint32)


def jaccard(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    """Returns the size of the intersection of two sets divided by the size of their union. Both are sorted, and at
    least one is not empty."""
    shared = np.intersect1d(first, second, assume_unique=True).size
    return float(shared / (first.size + second.size - shared))


class NearDuplicates:
    """Stores the texts of rows, in the order in which they are added, as sets of shingles in files of `folder`."""

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
        for start, end in attended(sets.blocks()):
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
    """Numbers in a file, which are read and written in ranges. The file is not mapped into memory, because every page
    that was read would count as memory of the process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)

    def read(self, start: int, end: int) -> NDArray[np.uint32]:
        """Returns the numbers [start, end)."""
        return np.frombuffer(os.pread(self._file.fileno(), 4 * (end - start), 4 * start), np.uint32)

    def write(self, start: int, numbers: NDArray[np.uint32]) -> None:
        """Writes `numbers` at the index `start`."""
        os.pwrite(self._file.fileno(), numbers.tobytes(), 4 * start)


class _Sets:
    """The shingles of each row, without the shingles of a template that most rows share."""

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
        """Returns the shingles of a row, sorted. If all of them belong to the template, returns all of them."""
        whole = self._flat.read(int(self._starts[row]), int(self._starts[row + 1]))
        own = whole[np.isin(whole, self._template, invert=True)] if self._template.size else whole
        return own if own.size else whole

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yields ranges [start, end) of rows that are processed at a time."""
        start = 0
        while start < len(self):
            within = int(np.searchsorted(self._starts, self._starts[start] + AT_ONCE, "right")) - 1
            end = max(start + 1, min(start + BLOCK, within))
            yield start, end
            start = end

    def block(self, start: int, end: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Returns the shingles of the rows [start, end), one row after another, the start of each row, and the end."""
        starts = self._starts[start : end + 1] - self._starts[start]
        flat = self._flat.read(int(self._starts[start]), int(self._starts[end]))
        if not self._template.size:
            return flat, starts
        kept = np.isin(flat, self._template, invert=True)
        sizes = np.diff(starts)
        kept |= np.repeat(np.add.reduceat(kept, starts[:-1], dtype=np.int64) == 0, sizes)
        return flat[kept], np.concatenate([[0], np.cumsum(np.add.reduceat(kept, starts[:-1], dtype=np.int64))])


def _band_keys(flat: NDArray[np.uint32], starts: NDArray[np.int64], width: int) -> NDArray[np.uint32]:
    """Returns the band keys of the rows' sketches, each a hash of `width` numbers. Shape [BANDS, rows]."""
    sketches = RMinHash.digest_matrix_from_flat_token_hashes(
        flat.astype(np.uint64), starts.astype(np.uint64), BANDS * width, SEED
    )
    numbers = np.fromiter(chain.from_iterable(sketches.to_rows()), dtype=np.uint64).reshape(-1, BANDS, width)
    keys = np.zeros(numbers.shape[:2], dtype=np.uint64)
    for place in range(width):
        keys = (keys ^ numbers[:, :, place]) * np.uint64(MULTIPLIER)
    return (keys >> np.uint64(32)).astype(np.uint32).T
