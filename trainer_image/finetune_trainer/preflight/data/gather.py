"""Stores all rows of a job: reads, checks, cleans, deduplicates, renders and tokenizes them.

The rows are processed one after another, so memory does not grow with the data set. A step that needs all rows uses
their records (`row_store.RECORD`) after the rows are stored.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import Dataset, Source
from finetune_api.spec.row_cleaning import Near
from finetune_api.spec.training import LossOn
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.copies.deduplicate import Alike, NearCopies, SeenKeys, drop_copies, prompt_key
from finetune_trainer.handover.prepared import Side
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.rows.cleaning import Cleaner
from finetune_trainer.rows.reading import read_rows
from finetune_trainer.rows.readings import Reading, Readings
from finetune_trainer.rows.row_format import Message, Row
from finetune_trainer.rows.suspicions import Suspicions, special_tokens
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import JobStorage
from finetune_trainer.tokens.render import PromptFormat
from finetune_trainer.tokens.row_notes import RowNotes
from finetune_trainer.tokens.row_store import Example, RowStore, StoreWriter
from finetune_trainer.tokens.token_ids import require_rows
from finetune_trainer.tokens.tokenization import tokenize

READING_ORDER: tuple[Side, ...] = ("test", "validation", "train")
"""A row that occurs in two splits is kept in the first of them and dropped from the other."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """All stored rows of a job."""

    store: RowStore
    sides: dict[Side, NDArray[np.int64]]
    """Indices of the rows of each list of sources."""
    alike: Alike
    """Which rows are near-duplicates of each other."""
    notes: RowNotes
    readings: Readings
    """Values that were converted when they were read, and values that were not read."""


def gather(
    dataset: Dataset,
    storage: JobStorage,
    model: BaseModel,
    format: PromptFormat,
    longest: int,
    findings: Findings,
    folder: Path,
) -> Gathered:
    """Stores the rows of all sources in `folder`. Documents are split into pieces of at most `longest` tokens.
    Temporary files are written next to `folder`.

    Raises TrainerFailure DatasetInvalid when more rows are invalid than allowed, or when a list of sources has no
    usable row; SpecInvalid when cleaning empties most of the rows; ModelUnsupported as `require_rows` does."""
    seen, cleaner, suspicions = SeenKeys(), Cleaner(dataset.clean), Suspicions(model.tokenizer)
    copies = NearCopies(dataset.deduplicate, storage, folder.parent)
    notes, readings = RowNotes(special_tokens(model.tokenizer)), Readings()
    findings.cleaned = cleaner.cleaned
    sides: dict[Side, NDArray[np.int64]] = {}
    lost: dict[Side, Counter[str]] = {}
    phase("reading the rows", steady=True)
    with StoreWriter(folder) as writer:
        for split in READING_ORDER:
            first, before = len(writer), _counted(findings, cleaner)
            rows = read_rows(storage, sources_of(dataset, split), f"spec.dataset.{split}", findings, readings)
            rows = suspicions.note(drop_copies(cleaner.clean(rows), seen, findings), findings)
            examples = require_rows(tokenize(rows, format, model.tokenizer, findings, longest), model)
            for key, whole, example in _keyed(examples):
                writer.append(example, key)
                copies.add(whole)
                notes.add(example.messages)
            sides[split] = np.arange(first, len(writer))
            lost[split] = _counted(findings, cleaner) - before
    findings.raise_if_invalid(dataset.max_invalid_fraction)
    _require_all_learned(format, readings)
    phase("searching for near-duplicates")
    store = RowStore(folder)
    alike = copies.find(store.column("key"), store.messages)
    findings.near_duplicates = int(alike.repeats.sum())
    if dataset.deduplicate.near is Near.DROP:
        sides = _without_near_copies(sides, alike)
        findings.near_duplicates = len(store) - sum(map(len, sides.values()))
    for split in sides:
        if sources_of(dataset, split) and not len(sides[split]):
            raise _empty(dataset, split, lost[split], cleaner)
    return Gathered(store, sides, alike, notes, readings)


def _require_all_learned(format: PromptFormat, readings: Readings) -> None:
    """Raises TrainerFailure SpecInvalid when lossOn is All, but some answers are excluded from training."""
    if format.loss_on is LossOn.ALL and (turns := readings.times(Reading.NOT_LEARNED)):
        flags = " and ".join(readings.rows_with(Reading.NOT_LEARNED))
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.training.lossOn is All, which trains on every token, but {turns:,} answers are excluded from "
            f"training by {flags}.",
            f"Set spec.training.lossOn to Completion, or remove {flags} from the rows.",
        )


def sources_of(dataset: Dataset, split: Side) -> Sequence[Source]:
    """Returns the sources of a split. The list is empty when the rows of the split are drawn from dataset.train."""
    named = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return named[split] or []


def _keyed(examples: Iterable[tuple[Row, Example]]) -> Iterator[tuple[bytes, tuple[Message, ...], Example]]:
    """Each example with the key of what its row asks, so that the parts of a row stay together, and with the messages
    its copies are looked for by: a piece of a document by itself, a part of a conversation by the whole."""
    whole, key = None, b""
    for row, example in examples:
        if row is not whole:
            whole, key = row, prompt_key(row)
        yield key, example.messages if row.is_document else row.messages, example


def _without_near_copies(sides: dict[Side, NDArray[np.int64]], alike: Alike) -> dict[Side, NDArray[np.int64]]:
    """Removes near-duplicates of earlier rows, and training rows whose prompt nearly equals that of a held-out row."""
    kept: dict[Side, NDArray[np.int64]] = {}
    held = np.zeros(0, dtype=np.uint64)
    for split in READING_ORDER:
        rows = sides[split]
        kept[split] = rows[~alike.repeats[rows] & np.isin(alike.groups[rows], held, invert=True)]
        held = np.concatenate([held, alike.groups[kept[split]]])
    return kept


def _counted(findings: Findings, cleaner: Cleaner) -> Counter[str]:
    """Counts the rows read so far, the invalid rows, and the rows that are empty after cleaning."""
    return Counter(rows=findings.rows, invalid=findings.invalid, emptied=cleaner.cleaned.emptied)


def _empty(dataset: Dataset, split: Side, lost: Counter[str], cleaner: Cleaner) -> TrainerFailure:
    where = ", ".join(source.uri for source in sources_of(dataset, split))[:500]
    earlier = READING_ORDER[: READING_ORDER.index(split)]
    before = " or ".join(f"spec.dataset.{other}" for other in earlier if sources_of(dataset, other))
    rows, invalid, emptied = lost["rows"], lost["invalid"], lost["emptied"]
    alike = rows - invalid - emptied
    if not invalid and not emptied:
        if before and rows:
            return TrainerFailure(
                FailureReason.DATASET_INVALID,
                f"Every row of spec.dataset.{split} is also in {before}: {where}.",
                "Remove the rows from one of them, or use other files.",
            )
        return TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"spec.dataset.{split} contains no row: {where}.",
            f"Add rows to the files, or correct spec.dataset.{split}.",
        )
    steps = ", ".join(f"spec.dataset.clean.{step}" for step, changed in cleaner.cleaned.steps.items() if changed)
    causes = {
        f"{invalid:,} invalid (see status.preflight.findings)": invalid,
        f"{emptied:,} empty after cleaning ({steps})": emptied,
        f"{alike:,} duplicates{f' of rows of {before}' * bool(before)}": alike,
    }
    listed = ", ".join(cause for cause, number in causes.items() if number)
    message = f"spec.dataset.{split} contains no usable row. Rows read: {rows:,}, of which {listed}. Files: {where}."
    reason = FailureReason.SPEC_INVALID if emptied > rows / 2 else FailureReason.DATASET_INVALID
    return TrainerFailure(reason, message)
