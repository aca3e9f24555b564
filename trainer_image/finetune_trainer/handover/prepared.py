"""Writes and reads the prepared data: the rows as token ids, not packed, and all resolved settings.

Preflight writes the prepared data under the job's work prefix, next to the output. Every training attempt reads it.
`prepared_place` says where the files lie, and which of them an attempt reads. The files are those of the store
(`row_store`), one SPLIT.npy for each side of the split (its rows and their clusters), a folder of the same kind for the
regression sets, and manifest.json with the sha256 of each file. manifest.json is written last.
"""

import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.training import LossOn
from finetune_api.status.preflight import Preflight, Resolved
from finetune_trainer.base.model_files import ADAPTER_WEIGHTS, Files, Pins, without_card
from finetune_trainer.handover.prepared_cache import CachedRows, fetch
from finetune_trainer.handover.prepared_place import gone, place_of, used_manifest, write_manifest
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.pod.rank import own_pod
from finetune_trainer.sources.cleaning_record import Change
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.storage.local_files import sha256_of
from finetune_trainer.tokens.row_store import Example as Example  # re-exported for the modules that use rows
from finetune_trainer.tokens.row_store import Rows, RowStore

Side = Literal["train", "validation", "test"]
REGRESSION = "regression"
"""Folder of the store for the regression sets."""
ADAPTER = "adapter"
"""Folder of the copy of the adapter to continue from."""
SIDES: tuple[Side, ...] = ("train", "validation", "test")

KEEP_FILES = "Leave the files below spec.output.uri unchanged until the job has ended."


@dataclass(frozen=True, eq=False)
class Prepared:
    """All rows and all resolved settings of a job."""

    train: Sequence[Example]
    test: Sequence[Example]
    resolved: Resolved
    preflight: Preflight
    answers: Answers
    """The kind of the training answers, which decides the default metrics."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer: from the tokenizer, from the model's generation config, and the end-of-turn token."""
    chat_template: str
    """The template that rendered the rows: the tokenizer's chat template, or the template of the Plain format."""
    validation: Sequence[Example] = ()
    """Validation rows. May be empty."""
    cleaning: Sequence[Change] = ()
    """Examples of changes by cleaning, for the report."""
    regression: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """The rows of each regression set, by the name of the set."""
    cached: CachedRows | None = None
    """The entry of the cache with the rows of the store, if they are there."""
    model_files: Files = field(default_factory=dict)
    """The files of the base model that preflight inspected and that training reads."""
    model_pins: Pins = field(default_factory=dict)
    """The identities of these files when preflight inspected them."""
    adapter: Path | None = None
    """The local folder with the copy of the adapter to continue from; None without such an adapter."""

    @property
    def model_digest(self) -> str:
        """The sha256 of what identifies the base model and the adapter to continue from."""
        weights = sha256_of(self.adapter / ADAPTER_WEIGHTS) if self.adapter else None
        parts = [without_card(self.model_files), dict(self.model_pins), weights]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def sharded_on(self, bundle: Bundle) -> bool:
        """Whether the weights are sharded over the GPUs. `bundle`: has only the GPU type on which the pod runs."""
        names = {gpu.name for gpu in bundle.gpu_types}
        return any(each.sharded for each in self.preflight.estimate or [] if each.gpu_type in names)

    @property
    def commits(self) -> dict[str, str]:
        """The commit of each repository of a hub that preflight has read, by its URI."""
        return {revision.uri: revision.commit for revision in self.resolved.revisions or []}

    def commit_of(self, uri: str) -> str | None:
        """Returns the commit of the repository with this URI; None if it is not on a hub."""
        return self.commits.get(uri.rstrip("/"))


def place(store: RowStore, name: str, placed: NDArray[Any]) -> Rows:
    """Writes the rows of one side of the split to NAME.npy in the store's folder. Returns these rows. `placed`: of type
    row_store.PLACED, shape [rows]."""
    np.save(store.folder / f"{name}.npy", placed)
    return Rows(store, placed)


def write_prepared(storage: JobStorage, bundle: Bundle, prepared: Prepared, folder: Path) -> None:
    """Uploads the store in `folder` with its splits, except files that are in the cache. The manifest is uploaded last,
    so a reader never finds incomplete data."""
    phase("uploading the prepared rows")
    to, cached = place_of(bundle, own_pod()), prepared.cached
    files: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if cached and name in cached.files:
            continue
        files[name] = sha256_of(path)
        storage.upload_file(path, join(to, name))
    # The rows in the cache may be older than the other files. A lifecycle rule counts from when they were written.
    written = datetime.now(UTC)
    if cached:
        written = min(written, cached.written or datetime.min.replace(tzinfo=UTC))  # unknown: it is renewed soon
    manifest = {
        "files": files,
        "cached": {"uri": cached.uri, "files": dict(cached.files)} if cached else None,
        "resolved": prepared.resolved.model_dump(mode="json", by_alias=True),
        "preflight": prepared.preflight.model_dump(mode="json", by_alias=True, exclude_none=True),
        "answers": asdict(prepared.answers),
        "stopTokenIds": prepared.stop_token_ids,
        "chatTemplate": prepared.chat_template,
        "modelFiles": dict(prepared.model_files),
        "modelPins": dict(prepared.model_pins),
        "cleaning": [asdict(change) for change in prepared.cleaning],
    }
    write_manifest(storage, bundle, manifest, written)


def read_prepared(storage: JobStorage, bundle: Bundle, scratch: Path, downloaded: bool = False) -> Prepared:
    """Downloads the prepared data to `scratch`/prepared. This folder must exist as long as the rows are used.
    `downloaded`: whether another process of this pod has done so already.

    Raises TrainerFailure as `used_manifest` does if the data was deleted or has another format, and StorageUnavailable
    if it was changed."""
    folder = scratch / "prepared"
    try:
        manifest = used_manifest(storage, bundle)
        if not downloaded:
            _download(storage, bundle, manifest, folder)
        return _prepared(bundle, manifest, folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        traceback.print_exception(error)
        raise TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE,
            f"The prepared data at {place_of(bundle)} is damaged.",
            "Delete the FineTuneJob and create it again, so that its preflight prepares the data anew.",
        ) from error


def read_model_files(storage: JobStorage, bundle: Bundle) -> tuple[Files, Pins, dict[str, str]]:
    """Returns the files of the base model that training reads, their identities, and the commits of repositories.

    Raises TrainerFailure as `read_prepared` does, and an error of Python if the manifest has another form."""
    manifest = used_manifest(storage, bundle)
    revisions = Resolved.model_validate(manifest["resolved"]).revisions or []
    return manifest["modelFiles"], manifest["modelPins"], {revision.uri: revision.commit for revision in revisions}


def _download(storage: JobStorage, bundle: Bundle, manifest: Mapping[str, Any], folder: Path) -> None:
    """Downloads the files that `manifest` names to `folder`. Raises TrainerFailure as `read_prepared`
    does, and an error of Python if the manifest has another form."""
    source = place_of(bundle, manifest["folder"])
    storage.download_folder(source, folder, lambda path: path in manifest["files"])
    for name, digest in manifest["files"].items():
        if not (folder / name).exists():
            raise gone(bundle, join(source, name))
        if sha256_of(folder / name) != digest:
            raise TrainerFailure(
                FailureReason.STORAGE_UNAVAILABLE,
                f"{join(source, name)} was changed after preflight wrote it.",
                KEEP_FILES,
            )
    if cached := _cached(manifest):
        _fetch_cached(storage, bundle, cached, folder)


def _cached(manifest: Mapping[str, Any]) -> CachedRows | None:
    return CachedRows(**manifest["cached"]) if manifest["cached"] else None


def _prepared(bundle: Bundle, manifest: Mapping[str, Any], folder: Path) -> Prepared:
    """Opens the files in `folder`. Raises an error of Python if the manifest or a file has another form."""
    store = RowStore(folder)
    rows: dict[Side, Rows] = {side: Rows(store, np.load(folder / f"{side}.npy")) for side in SIDES}
    return Prepared(
        **learned(rows, bundle.spec.training.loss_on),
        cached=_cached(manifest),
        regression=_regression(folder / REGRESSION),
        resolved=Resolved.model_validate(manifest["resolved"]),
        preflight=Preflight.model_validate(manifest["preflight"]),
        answers=Answers(AnswerKind(manifest["answers"]["kind"]), tuple(manifest["answers"]["labels"])),
        stop_token_ids=tuple(manifest["stopTokenIds"]),
        chat_template=manifest["chatTemplate"],
        model_files=manifest["modelFiles"],
        model_pins=manifest["modelPins"],
        adapter=folder / ADAPTER if (folder / ADAPTER).is_dir() else None,
        cleaning=[Change(**change) for change in manifest["cleaning"]],
    )


def _fetch_cached(storage: JobStorage, bundle: Bundle, cached: CachedRows, folder: Path) -> None:
    """Downloads rows from the cache. Raises TrainerFailure as `read_prepared` does."""
    if {*cached.files.values()} - storage.list_folder(cached.uri).keys():
        raise gone(bundle, cached.uri)
    if why := fetch(storage, cached, folder):
        raise TrainerFailure(
            FailureReason.STORAGE_UNAVAILABLE,
            f"The prepared rows of this job in {cached.uri} were changed: {why}.",
            "Do not delete files below spec.preparedCache.uri of the FineTuneProfile that are only a few days old.",
        )


def _regression(folder: Path) -> dict[str, Rows]:
    """Returns the rows of the regression sets. The result is empty if there are no such sets."""
    if not folder.is_dir():
        return {}
    store = RowStore(folder)
    return {path.stem: Rows(store, np.load(path)) for path in sorted(folder.glob("*.npy"))}


def learned(sides: dict[Side, Rows], loss_on: LossOn) -> dict[Side, Rows]:
    """Applies training.lossOn to the sides. Test rows are always evaluated on their answers only."""
    if loss_on is LossOn.COMPLETION:
        return sides
    return {side: rows if side == "test" else rows.whole() for side, rows in sides.items()}


def data_digest(sides: dict[Side, Rows], *inputs: bytes | str | int) -> str:
    """Returns the sha256, as hexadecimal digits, of all tokens, of the tokens that are trained on, and of the split.
    `inputs`: the tokenizer, the template and the lengths, which decide how later text is tokenized."""
    digest = hashlib.sha256()
    for part in inputs:
        digest.update(hashlib.sha256(part if isinstance(part, bytes) else str(part).encode()).digest())
    for side, rows in sides.items():
        digest.update(f"{side} {len(rows)}".encode())
        digest.update(rows.column("digest").data)
    return digest.hexdigest()
