"""Takes the rows of a job from the cache of prepared rows, or gathers them and writes them to the cache.

The files are looked at with the job's own keys in both cases, so that a job never gets rows that it may not read."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.bundle import Bundle, sources_of
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.base.model_files import CARD
from finetune_trainer.handover.prepared_cache import CachedRows, fetch, look_up, place_in_cache, store
from finetune_trainer.handover.trainer_version import trainer_version
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.preflight.data.gather import Gathered, gather
from finetune_trainer.preflight.data.gathered_files import load_gathered, save_gathered
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.storage.local_files import sha256_of
from finetune_trainer.tokens.render import PromptFormat
from finetune_trainer.tokens.row_store import RowStore

ROWS, GATHERED = "rows", "gathered"
"""Folders of an entry: the files of the store, and what is known about its rows."""
LATER: dict[str, Any] = {"split": True, "overlength": True, "train": {"__all__": {"name", "weight"}}}
"""Fields of spec.dataset that are used after the rows are stored."""


def gather_or_reuse(
    bundle: Bundle,
    storage: JobStorage,
    model: BaseModel,
    format: PromptFormat,
    longest: int,
    findings: Findings,
    scratch: Path,
) -> tuple[Gathered, CachedRows | None]:
    """Returns the stored rows, with their files in `scratch`/prepared, and their place in the cache if they are there.

    The arguments are those of `gather`. `scratch`/model has the settings of the base model. Raises TrainerFailure as
    `gather` does, and if a file of the data set cannot be read."""
    phase("looking for prepared rows in the cache")
    folder = scratch / "prepared"
    if bundle.prepared_cache is None:
        return gather(bundle.spec.dataset, storage, model, format, longest, findings, folder), None
    facts = rows_facts(bundle, storage, model, longest, scratch / "model")
    uri = place_in_cache(bundle, _digest(facts))
    assert uri
    if reused := _reuse(storage, uri, findings, scratch):
        return reused
    gathered = gather(bundle.spec.dataset, storage, model, format, longest, findings, folder)
    if rows_facts(bundle, storage, model, longest, scratch / "model") != facts:
        print("The rows are not written to the cache, because their files changed while they were read.", flush=True)
        return gathered, None
    return gathered, _keep(bundle, storage, uri, gathered, findings, scratch)


def rows_facts(bundle: Bundle, storage: JobStorage, model: BaseModel, longest: int, settings: Path) -> dict[str, Any]:
    """Returns everything that determines the stored rows. Raises TrainerFailure if a file of the data set must not be
    read."""
    dataset = bundle.spec.dataset
    return {
        "files": {uri: storage.identity(uri, exact=True) for uri in sorted(set(_files(bundle, storage)))},
        "dataset": dataset.model_dump(mode="json", by_alias=True, exclude=LATER),
        "lossOn": bundle.spec.training.loss_on,
        "longest": longest,
        "model": {
            path.name: sha256_of(path) for path in sorted(settings.iterdir()) if path.is_file() and path.name != CARD
        },
        "vocabulary": model.rows,
        "trainer": trainer_version(),
    }


def _files(bundle: Bundle, storage: JobStorage) -> Iterator[str]:
    """Yields each file that decides the rows: those of the data set, and those of the sentence model."""
    for field, source in sources_of(bundle.spec).items():
        if field.startswith("spec.dataset."):
            yield from storage.list(source.uri)
    if embedding := bundle.spec.dataset.deduplicate.embedding_model:
        for path in storage.list_folder(embedding.uri):
            yield join(embedding.uri, path)


def _reuse(storage: JobStorage, uri: str, findings: Findings, scratch: Path) -> tuple[Gathered, CachedRows] | None:
    """Returns the rows in the cache at `uri`, or None. Prints what is reused, and why something is not used."""
    found = look_up(storage, uri)
    if not isinstance(found, CachedRows):
        print(found or "The cache of prepared rows has no rows of these files and settings.", flush=True)
        return None
    arrived = scratch / "cached"
    arrived.mkdir()
    try:
        why = fetch(storage, found, arrived)
    except TrainerFailure as failure:
        why = failure.message
    if why is None:
        try:
            gathered = load_gathered(RowStore(arrived / ROWS), findings, arrived / GATHERED)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"they are incomplete ({type(error).__name__})"
        else:
            found = _renewed(storage, found, arrived)
            shutil.move(arrived / ROWS, scratch / "prepared")
            gathered = replace(gathered, store=RowStore(scratch / "prepared"))
            print(f"The rows are those that job {found.job} prepared from the same files. They are not read again.")
            return gathered, found.below(ROWS)
    shutil.rmtree(arrived)
    print(f"The prepared rows in {uri} are not used: {why.rstrip('.')}.", flush=True)
    return None


def _renewed(storage: JobStorage, found: CachedRows, arrived: Path) -> CachedRows:
    """Writes older rows again, so that no lifecycle rule deletes them while this job runs. `arrived`: their files.
    Returns the rows with the time at which they were last written."""
    if found.young:
        return found
    try:
        stored = store(storage, found.uri, found.job, {name: arrived / name for name in found.files})
        return replace(found, written=stored.written)
    except TrainerFailure as failure:
        print(
            f"The rows in {found.uri} were not written again, so a lifecycle rule may delete them during the job: "
            f"{failure.message}",
            flush=True,
        )
        return found


def _keep(
    bundle: Bundle, storage: JobStorage, uri: str, gathered: Gathered, findings: Findings, scratch: Path
) -> CachedRows | None:
    """Writes the rows to the cache. Returns their place there, or None if the storage refuses them."""
    save_gathered(gathered, findings, scratch / GATHERED)
    folders = {ROWS: scratch / "prepared", GATHERED: scratch / GATHERED}
    files = {
        f"{name}/{path.relative_to(folder)}": path
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file()
    }
    try:
        return store(storage, uri, bundle.job.name if bundle.job else "local", files).below(ROWS)
    except TrainerFailure as failure:
        print(f"The prepared rows were not written to the cache: {failure.message}", flush=True)
        return None


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
