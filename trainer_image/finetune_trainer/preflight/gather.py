"""All rows of a job in one store: read, checked, cleaned, without copies, looked at, rendered, tokenized.

Rows flow through one after another and are never held together; what has to look at all of them does so by their
records (`row_store.RECORD`) once they are stored.
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
from finetune_trainer.pod.storage import JobStorage
from finetune_trainer.rows.cleaning import Cleaner
from finetune_trainer.rows.reading import read_rows
from finetune_trainer.rows.readings import Reading, Readings
from finetune_trainer.rows.row_format import Message, Row
from finetune_trainer.rows.suspicions import Suspicions, special_tokens
from finetune_trainer.sources.findings import Findings
from finetune_trainer.tokens.render import PromptFormat
from finetune_trainer.tokens.row_notes import RowNotes
from finetune_trainer.tokens.row_store import Example, RowStore, StoreWriter
from finetune_trainer.tokens.token_ids import require_rows
from finetune_trainer.tokens.tokenization import tokenize

READING_ORDER: tuple[Side, ...] = ("test", "validation", "train")
"""A row that stands in two of them is kept in the first and dropped from the other."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """All rows, stored."""

    store: RowStore
    sides: dict[Side, NDArray[np.int64]]
    """Numbers of the rows that each list of sources gave."""
    alike: Alike
    """Which rows are copies of one another, nearly."""
    notes: RowNotes
    readings: Readings
    """What of the rows was read as something else than it is written, or not at all."""


def gather(
    dataset: Dataset,
    storage: JobStorage,
    model: BaseModel,
    format: PromptFormat,
    longest: int,
    findings: Findings,
    folder: Path,
) -> Gathered:
    """Stores the rows of all sources in `folder`, documents in pieces of at most `longest` tokens; beside it, files to
    work with may be made. Raises TrainerFailure DatasetInvalid where more rows are not valid than allowed, or where of
    a list of sources none is left, SpecInvalid where cleaning leaves none, ModelUnsupported as `require_rows` does."""
    seen, cleaner, suspicions = SeenKeys(), Cleaner(dataset.clean), Suspicions(model.tokenizer)
    copies = NearCopies(dataset.deduplicate, storage, folder.parent)
    notes, readings = RowNotes(special_tokens(model.tokenizer)), Readings()
    findings.cleaned = cleaner.cleaned
    sides: dict[Side, NDArray[np.int64]] = {}
    lost: dict[Side, Counter[str]] = {}
    with StoreWriter(folder) as writer:
        for split in READING_ORDER:
            first, before = len(writer), _counted(findings, cleaner)
            rows = read_rows(storage, sources_of(dataset, split), f"dataset.{split}", findings, readings)
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
    """Raises TrainerFailure SpecInvalid where all is to be learned, and turns say that they are not."""
    if format.loss_on is LossOn.ALL and (turns := readings.times(Reading.NOT_LEARNED)):
        flags = " and ".join(readings.rows_with(Reading.NOT_LEARNED))
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"training.lossOn All learns every token, and {turns:,} answers say by {flags} that they are not to be "
            "learned: set training.lossOn to Completion, or take the flags out.",
        )


def sources_of(dataset: Dataset, split: Side) -> Sequence[Source]:
    """The sources named for a side; none where its rows are drawn from those of train."""
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
    """The rows that do not nearly repeat an earlier one, nor ask nearly the same as one that is held out."""
    kept: dict[Side, NDArray[np.int64]] = {}
    held = np.zeros(0, dtype=np.uint64)
    for split in READING_ORDER:
        rows = sides[split]
        kept[split] = rows[~alike.repeats[rows] & np.isin(alike.groups[rows], held, invert=True)]
        held = np.concatenate([held, alike.groups[kept[split]]])
    return kept


def _counted(findings: Findings, cleaner: Cleaner) -> Counter[str]:
    """Rows read so far, and those of them that cannot be used or that cleaning leaves nothing of."""
    return Counter(rows=findings.rows, invalid=findings.invalid, emptied=cleaner.cleaned.emptied)


def _empty(dataset: Dataset, split: Side, lost: Counter[str], cleaner: Cleaner) -> TrainerFailure:
    where = ", ".join(source.uri for source in sources_of(dataset, split))[:500]
    earlier = READING_ORDER[: READING_ORDER.index(split)]
    before = " or ".join(f"dataset.{other}" for other in earlier if sources_of(dataset, other))
    rows, invalid, emptied = lost["rows"], lost["invalid"], lost["emptied"]
    alike = rows - invalid - emptied
    if not invalid and not emptied:
        left = f" that does not also stand in {before}" if before and rows else ""
        return TrainerFailure(FailureReason.DATASET_INVALID, f"dataset.{split} holds no row{left}: {where}.")
    steps = ", ".join(f"dataset.clean.{step}" for step, changed in cleaner.cleaned.steps.items() if changed)
    told = {
        f"{invalid:,} not valid (status.preflight.findings says why)": invalid,
        f"{emptied:,} empty after cleaning ({steps})": emptied,
        f"{alike:,} repeating rows{f' of {before}' * bool(before)}": alike,
    }
    said = (
        f"None of {rows:,} rows of dataset.{split} is left: {'; '.join(why for why, n in told.items() if n)}: {where}."
    )
    reason = FailureReason.SPEC_INVALID if emptied > rows / 2 else FailureReason.DATASET_INVALID
    return TrainerFailure(reason, said)
