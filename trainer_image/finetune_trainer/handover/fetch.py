"""Fetches the base model before the trainer starts: from the cache of the namespace, or else from its source.

It runs in a container of its own, the only one that mounts the cache. The trainer gets the model in the folder that
both containers share, so it can change nothing in the cache. A fetch that fails does not end the attempt: the trainer
then downloads the model itself, and reports what is wrong with the source."""

import json
import shutil
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_trainer.base.cache.model_cache import DamagedError, ModelCache, key_of
from finetune_trainer.base.model_files import Files, copy_files, require_unchanged, without_card
from finetune_trainer.handover.prepared import Prepared, read_model_files
from finetune_trainer.pod.failure import failure_of
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.storage.job_storage import JobStorage

FOLDER, FETCHED = "fetched-model", "fetched-model.json"


@dataclass(frozen=True)
class Fetched:
    """A model that the fetching container has left for the trainer."""

    key: str
    """Key of the model in the cache."""
    seconds: float
    """How long it took."""
    cached: bool
    """Whether it came from the cache."""


def fetch(bundle: Bundle, storage: JobStorage, cache: ModelCache, scratch: Path = Path(names.SCRATCH_FOLDER)) -> str:
    """Puts the base model into a folder of `scratch`, for `take`. Returns a sentence that says how.

    Raises nothing but StopRequested: whatever fails, the trainer can do without."""
    try:
        fetched = _fetch(bundle, storage, cache, scratch / FOLDER)
    except Exception as error:
        shutil.rmtree(scratch / FOLDER, ignore_errors=True)
        traceback.print_exception(error)
        return f"The base model was not fetched, so the trainer downloads it itself: {failure_of(error).message}"
    (scratch / FETCHED).write_text(json.dumps(asdict(fetched)))
    return said(fetched)


def take(uri: str, prepared: Prepared, to: Path, scratch: Path = Path(names.SCRATCH_FOLDER)) -> Fetched | None:
    """Moves the fetched model to the folder `to`. Returns None if there is none, or another one."""
    try:
        fetched = Fetched(**json.loads((scratch / FETCHED).read_bytes()))
    except FileNotFoundError:
        return None
    if fetched.key != key_of(uri, prepared.model_files, prepared.model_pins):
        return None
    (scratch / FOLDER).rename(to)
    return fetched


def said(fetched: Fetched) -> str:
    """Returns the sentence about a fetched model."""
    how = "came from the cache" if fetched.cached else "was downloaded, because the cache did not have it,"
    return f"The base model {how} in {fetched.seconds:.1f} s."


def _fetch(bundle: Bundle, storage: JobStorage, cache: ModelCache, to: Path) -> Fetched:
    phase("fetching the base model")
    started, uri = perf_counter(), bundle.spec.model.uri
    files, pins, commits = read_model_files(storage, bundle)
    storage.pin(commits)
    require_unchanged(storage, uri, pins)  # also whether the job may read the source, before it gets the copy
    key = key_of(uri, files, pins)
    kept = without_card(files)
    if kept != files:
        # First: if it fails, no copy of the weights is lost.
        copy_files(storage, uri, {path: size for path, size in files.items() if path not in kept}, to)
    cached = _cached(cache, key, kept, to)
    if not cached:
        copy_files(storage, uri, files, to, pins)
        _store(cache, key, kept, to)
    return Fetched(key, perf_counter() - started, cached)


def _cached(cache: ModelCache, key: str, files: Files, to: Path) -> bool:
    """Copies the model from the cache. Returns False if it is not there, is damaged, or cannot be read."""
    try:
        return cache.copy(key, files, to)
    except (DamagedError, OSError) as error:
        shutil.rmtree(to, ignore_errors=True)
        print(f"The model in the cache cannot be used ({error}). It is downloaded again.", flush=True)
        return False


def _store(cache: ModelCache, key: str, files: Files, source: Path) -> None:
    try:
        if not cache.store(key, files, source):
            print("The cache has no room for the base model, so it is not kept there.", flush=True)
    except OSError as error:
        print(f"The base model could not be written to the cache ({error}).", flush=True)
