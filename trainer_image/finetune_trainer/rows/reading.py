"""Reads the rows of the sources and checks each. An error is reported with its file and line; nothing is guessed."""

from collections.abc import Iterator, Sequence

from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import RowFiles, RowFormat
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.progress import Progress
from finetune_trainer.rows.readings import Noted, Readings
from finetune_trainer.rows.row_columns import ColumnMap, detect_format
from finetune_trainer.rows.row_format import Row
from finetune_trainer.rows.row_messages import RowReader
from finetune_trainer.rows.unread_columns import UnreadColumns
from finetune_trainer.sources.findings import Findings, InvalidRow, place_of
from finetune_trainer.sources.records import read_records
from finetune_trainer.storage.job_storage import JobStorage

ROW_CHARACTERS = 4 * 1024 * 1024
"""Most characters of a row. The tokenizer needs about 200 bytes of memory for each character of one call."""


def read_rows(
    storage: JobStorage, sources: Sequence[RowFiles], field: str, findings: Findings, readings: Readings
) -> Iterator[Row]:
    """Yields the valid rows of all sources in order. Records the other rows in `findings`, and converted or unused
    values in `readings`. `field` is used in messages: dataset.train or dataset.test. Raises TrainerFailure
    DatasetNotFound, DatasetInvalid or SpecInvalid if a whole source cannot be used."""
    progress = Progress(f"Reading {field}", "rows")
    for position, source in enumerate(sources):
        for row in _read_source(storage, source, position, f"{field}[{position}]", findings, readings):
            progress.advance()
            yield row


def _read_source(
    storage: JobStorage, source: RowFiles, position: int, field: str, findings: Findings, readings: Readings
) -> Iterator[Row]:
    uris = storage.list(source.uri)
    if not uris:
        raise TrainerFailure(FailureReason.DATASET_NOT_FOUND, f"{field}.uri: no file matches {source.uri}.")
    reader: RowReader | None = None
    unread: UnreadColumns | None = None
    for record in (record for uri in uris for record in read_records(storage, uri, findings)):
        if reader is None or unread is None:
            format = source.format
            if format is RowFormat.AUTO:
                format = detect_format(record.value, source, field, place_of(record.place))
            reader, unread = RowReader(format, ColumnMap.of(source)), UnreadColumns(format, source)
        unread.note_names(record.value)
        noted = Noted()
        try:
            messages = reader.messages(record.value, noted)
            if sum(len(message.content) for message in messages) > ROW_CHARACTERS:
                raise InvalidRow(
                    f"the row is longer than {ROW_CHARACTERS >> 20} Mi characters", "split it into several rows"
                )
        except InvalidRow as problem:
            findings.invalid_row(record.place, problem)
        else:
            readings.add(noted)
            unread.note(record.value, messages)
            yield Row(messages, record.place, position)
    readings.unused += unread.listed(field) if unread else []
