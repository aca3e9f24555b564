"""Preflight: everything that can be found wrong, or decided, before a GPU is asked for."""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_api.job import Overlength, Split
from finetune_api.reasons import FailureReason, sentence
from finetune_api.status import ConditionType, Preflight, Splits
from finetune_trainer.base_model import BaseModel, inspect_model, require_target_modules
from finetune_trainer.deduplicate import drop_copies, prompt_key
from finetune_trainer.failure import TrainerFailure, failure_of
from finetune_trainer.findings import Findings, place_of
from finetune_trainer.ownership import published
from finetune_trainer.prepared import Example, Prepared, data_digest, work_prefix, write_prepared
from finetune_trainer.render import PromptFormat, prompt_format
from finetune_trainer.resolve import resolve, sequence_limit
from finetune_trainer.rows import read_rows
from finetune_trainer.split import hold_out
from finetune_trainer.status_writer import StatusWriter
from finetune_trainer.storage import Storage, join
from finetune_trainer.tokenization import tokenize

Keyed = list[tuple[bytes, Example]]
"""Rows, each with the key of its prompt."""


def preflight(bundle: Bundle, storage: Storage, status: StatusWriter) -> str:
    """Checks the job, writes its prepared data and says so in its status. Returns the sentence it ends with.

    Raises TrainerFailure; the status then carries Validated=False and what is known of the data."""
    findings = Findings()
    try:
        prepared = prepare(bundle, storage, findings)
        write_prepared(storage, bundle, prepared)
    except BaseException as error:
        failure = failure_of(error)
        text = sentence(failure.reason, failure.message)
        status.condition(ConditionType.VALIDATED, False, failure.reason, text)
        try:
            status.result(preflight=_found(findings))
        except (ConnectionError, RuntimeError) as unwritten:
            # The termination message still says what was wrong; this must not take its place.
            print(f"The status could not be written: {unwritten}", flush=True)
        raise
    message = (
        f"{len(prepared.train):,} rows to learn from in {prepared.resolved.total_steps:,} steps, "
        f"{len(prepared.test):,} held out."
    )
    status.condition(ConditionType.VALIDATED, True, "DataValid", message)
    status.result(preflight=prepared.preflight, resolved=prepared.resolved)
    return message


def prepare(bundle: Bundle, storage: Storage, findings: Findings) -> Prepared:
    """Output, model, rows, split, choices: first what takes least time to find wrong."""
    spec = bundle.spec
    check_output(bundle, storage)
    scratch = names.SCRATCH_FOLDER if Path(names.SCRATCH_FOLDER).is_dir() else None
    with tempfile.TemporaryDirectory(dir=scratch, prefix="model-") as folder:
        model = inspect_model(storage, spec.model.uri, Path(folder))
    require_target_modules(spec.method.lora.target_modules, model)
    format = prompt_format(model.tokenizer)
    train, test = _read(bundle, storage, model, format, findings)
    longest = max(len(example.input_ids) for _, example in (*train, *test))
    limit = sequence_limit(spec.training, longest, model.context)
    train = _within(limit, train, "dataset.train", spec.dataset.overlength, findings)
    test = _within(limit, test, "dataset.test", spec.dataset.overlength, findings) if test else []
    learned, held_out = _sides(train, test, spec.dataset.split)
    digest = data_digest(learned, held_out, model.fingerprint, format.source, limit)
    return Prepared(
        train=learned,
        test=held_out,
        resolved=resolve(spec, model.shape.parameters, limit, format.kind, learned, held_out),
        preflight=_found(findings, learned, held_out, digest),
        stop_token_ids=tuple(dict.fromkeys((*format.stop_token_ids, *model.end_tokens))),
        chat_template=format.source,
    )


def check_output(bundle: Bundle, storage: Storage) -> None:
    """Raises TrainerFailure OutputOccupied where another job's results lie, OutputNotWritable where a probe cannot be
    written and removed, or not under the condition that publishing needs."""
    published(storage, bundle)
    folder = join(work_prefix(bundle), "probe")
    probe = join(folder, "written-and-removed")
    storage.delete_prefix(folder)  # of a preflight that was interrupted
    first, second = (storage.write_bytes(probe, b"", if_absent=True) for _ in range(2))
    storage.delete_prefix(folder)
    if not first or second:
        raise TrainerFailure(
            FailureReason.OUTPUT_NOT_WRITABLE,
            f"The storage of output.uri {bundle.spec.output.uri} does not keep to If-None-Match: two jobs "
            "could overwrite each other's results.",
        )


def _read(
    bundle: Bundle, storage: Storage, model: BaseModel, format: PromptFormat, findings: Findings
) -> tuple[Keyed, Keyed]:
    """All rows of train and test, tokenized, without copies. Test is read first: a row that stands in both is dropped
    from train. Raises TrainerFailure DatasetInvalid where a row is not valid or there is none."""
    dataset = bundle.spec.dataset
    seen: set[bytes] = set()
    sides = {}
    for field, sources in (("dataset.test", dataset.test or []), ("dataset.train", dataset.train)):
        rows = drop_copies(read_rows(storage, sources, field, findings), seen, findings)
        sides[field] = [
            (prompt_key(row), example) for row, example in tokenize(rows, format, model.tokenizer, findings)
        ]
    findings.raise_if_invalid()
    for field, sources in (("dataset.train", dataset.train), ("dataset.test", dataset.test or [])):
        if sources and not sides[field]:
            left = " that does not also stand in dataset.test" if dataset.test and field == "dataset.train" else ""
            where = ", ".join(source.uri for source in sources)[:500]
            raise TrainerFailure(FailureReason.DATASET_INVALID, f"{field} holds no row{left}: {where}.")
    return sides["dataset.train"], sides["dataset.test"]


def _within(limit: int, rows: Keyed, field: str, policy: Overlength, findings: Findings) -> Keyed:
    """The rows of at most `limit` tokens. Raises TrainerFailure DatasetInvalid where none is left, or one is dropped
    under `overlength: Fail`."""
    kept = [(key, example) for key, example in rows if len(example.input_ids) <= limit]
    dropped = [example for _, example in rows if len(example.input_ids) > limit]
    findings.overlength += len(dropped)
    if dropped and (policy is Overlength.FAIL or not kept):
        more = f", and so are {len(dropped) - 1:,} more rows of {field}" if len(dropped) > 1 else ""
        remedy = "or set dataset.overlength to Drop" if kept else "no row is left"
        raise TrainerFailure(
            FailureReason.DATASET_INVALID,
            f"{place_of(dropped[0].source)} is {len(dropped[0].input_ids):,} tokens long{more}; "
            f"training.maxSequenceLength is {limit:,}: raise it, shorten them, {remedy}.",
        )
    return kept


def _sides(train: Keyed, test: Keyed, wish: Split) -> tuple[list[Example], list[Example]]:
    """Rows to learn from and rows to test on, in the sources' order; drawn from `train` where there is no `test`."""
    if test:
        return [example for _, example in train], [example for _, example in test]
    held = hold_out([key for key, _ in train], wish.test, wish.seed)
    sides: tuple[list[Example], list[Example]] = ([], [])
    for index, (_, example) in enumerate(train):
        sides[index in held].append(example)
    return sides


def _found(
    findings: Findings, train: Sequence[Example] = (), test: Sequence[Example] = (), digest: str | None = None
) -> Preflight:
    """What the status says of the data. Tokens are those of one epoch: the rows to learn from."""
    done = digest is not None
    return Preflight(
        rows=findings.rows,
        invalid=findings.invalid,
        duplicates=findings.duplicates,
        overlength=findings.overlength,
        tokens=sum(len(example.input_ids) for example in train) if done else None,
        supervised_tokens=sum(int(example.supervised.sum()) for example in train) if done else None,
        splits=Splits(train=len(train), test=len(test)) if done else None,
        digest=digest,
        observed_time=datetime.now(UTC),
    )
