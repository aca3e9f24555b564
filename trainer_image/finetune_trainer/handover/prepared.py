"""What preflight leaves for the attempts: the rows as token ids, not packed, and everything resolved.

Under the job's work prefix beside the output: the files of the store (`row_store`), SPLIT.npy (which of its rows are
on that side, and their clusters), a folder of the same kind for the regression sets, and manifest.json, written last,
with the sha256 of each.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.training import LossOn
from finetune_api.status.preflight import Preflight, Resolved
from finetune_trainer.base.model_files import Files
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.storage import JobStorage, join
from finetune_trainer.sources.cleaning_record import Change
from finetune_trainer.tokens.row_store import Example as Example  # where those who take rows know it from
from finetune_trainer.tokens.row_store import Rows, RowStore

Side = Literal["train", "validation", "test"]
REGRESSION = "regression"
"""Folder of the regression sets' store."""
SIDES: tuple[Side, ...] = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Prepared:
    """All rows, and what the run was resolved to."""

    train: Sequence[Example]
    test: Sequence[Example]
    resolved: Resolved
    preflight: Preflight
    answers: Answers
    """What the training answers are, which the metrics were chosen by."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer: the tokenizer's and the model's own list, and the template's end of turn."""
    chat_template: str
    """The template the rows were rendered with: the tokenizer's own, or the one that writes the Plain format."""
    validation: Sequence[Example] = ()
    """Rows to look at while training. May be none."""
    cleaning: Sequence[Change] = ()
    """Examples of what cleaning changed, for the report."""
    regression: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """The rows of each set of evaluation.regression, by its name."""
    model_files: Files = field(default_factory=dict)
    """The files of the base model's folder that were inspected, and that training reads."""


def work_prefix(bundle: Bundle) -> str:
    """URI of the job's own folder beside the output, for what is not a result; removed on success."""
    return join(bundle.spec.output.uri, ".work", bundle.job.uid if bundle.job else "local")


def place(store: RowStore, name: str, placed: NDArray[Any]) -> Rows:
    """Notes in the store's folder, as NAME.npy, which rows make up a side of the split. `placed`: row_store.PLACED."""
    np.save(store.folder / f"{name}.npy", placed)
    return Rows(store, placed)


def write_prepared(storage: JobStorage, bundle: Bundle, prepared: Prepared, folder: Path) -> None:
    """Uploads the store in `folder` with its splits, the manifest last, so that a reader finds all of it or nothing."""
    to = join(work_prefix(bundle), "prepared")
    files: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        files[name] = _sha256(path)
        storage.upload_file(path, join(to, name))
    manifest = {
        "files": files,
        "resolved": prepared.resolved.model_dump(mode="json", by_alias=True),
        "preflight": prepared.preflight.model_dump(mode="json", by_alias=True, exclude_none=True),
        "answers": asdict(prepared.answers),
        "stopTokenIds": prepared.stop_token_ids,
        "chatTemplate": prepared.chat_template,
        "modelFiles": dict(prepared.model_files),
        "cleaning": [asdict(change) for change in prepared.cleaning],
    }
    storage.write_bytes(join(to, "manifest.json"), json.dumps(manifest, indent=2).encode())


def read_prepared(storage: JobStorage, bundle: Bundle, scratch: Path) -> Prepared:
    """Reads what `write_prepared` wrote, into `scratch`/prepared, which has to stay as long as the rows are used.

    Raises TrainerFailure StorageUnavailable when it is gone or not as written."""
    source, folder = join(work_prefix(bundle), "prepared"), scratch / "prepared"
    if not storage.exists(join(source, "manifest.json")):
        raise TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE, f"The prepared data at {source} is gone: preflight has to run again."
        )
    manifest = json.loads(storage.read_bytes(join(source, "manifest.json")))
    storage.download_folder(source, folder, lambda path: path in manifest["files"])
    for name, digest in manifest["files"].items():
        if not (folder / name).exists() or _sha256(folder / name) != digest:
            raise TrainerFailure(
                FailureReason.STORAGE_UNAVAILABLE,
                f"{join(source, name)} is not what preflight wrote: preflight has to run again.",
            )
    store = RowStore(folder)
    rows: dict[Side, Rows] = {side: Rows(store, np.load(folder / f"{side}.npy")) for side in SIDES}
    return Prepared(
        **learned(rows, bundle.spec.training.loss_on),
        regression=_regression(folder / REGRESSION),
        resolved=Resolved.model_validate(manifest["resolved"]),
        preflight=Preflight.model_validate(manifest["preflight"]),
        answers=Answers(AnswerKind(manifest["answers"]["kind"]), tuple(manifest["answers"]["labels"])),
        stop_token_ids=tuple(manifest["stopTokenIds"]),
        chat_template=manifest["chatTemplate"],
        model_files=manifest["modelFiles"],
        cleaning=[Change(**change) for change in manifest["cleaning"]],
    )


def _regression(folder: Path) -> dict[str, Rows]:
    """The regression sets' rows, where there are such sets."""
    if not folder.is_dir():
        return {}
    store = RowStore(folder)
    return {path.stem: Rows(store, np.load(path)) for path in sorted(folder.glob("*.npy"))}


def learned(sides: dict[Side, Rows], loss_on: LossOn) -> dict[Side, Rows]:
    """The sides with what is learned of their rows by the spec; test rows are always judged by their answers."""
    if loss_on is LossOn.COMPLETION:
        return sides
    return {side: rows if side == "test" else rows.whole() for side, rows in sides.items()}


def data_digest(sides: dict[Side, Rows], *inputs: bytes | str | int) -> str:
    """sha256 as hex over every token, what of it is learned, and which side of the split it is on. `inputs`: the
    tokenizer, template and lengths behind them, which decide how later text is read."""
    digest = hashlib.sha256()
    for part in inputs:
        digest.update(hashlib.sha256(part if isinstance(part, bytes) else str(part).encode()).digest())
    for side, rows in sides.items():
        digest.update(f"{side} {len(rows)}".encode())
        digest.update(rows.column("digest").data)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
