"""Where the prepared data of a job lies, and which of it the attempts read.

    .work/JOB_UID/prepared/POD/...               the files that one preflight pod has written
    .work/JOB_UID/prepared/manifest.json         names the folder of the pod that was ready last, and its files
    .work/JOB_UID/prepared/used/manifest.json    the same, as the first attempt found it

All attempts read what the first one has found. So a preflight pod that counted as lost, and is ready only when the
training has begun, changes nothing."""

import json
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.handover.renewed import is_young
from finetune_trainer.pod.failure import Cancelled, TrainerFailure
from finetune_trainer.pod.progress import MEGABYTE, Progress
from finetune_trainer.pod.rank import own_pod
from finetune_trainer.storage.documents import read_document
from finetune_trainer.storage.job_storage import JobStorage, join

PREPARED, MANIFEST, USED = "prepared", "manifest.json", "used"
VERSION = 1
"""Format of the prepared data. Another image reads only its own."""


def work_prefix(bundle: Bundle) -> str:
    """Returns the URI of the job's work folder next to the output. The folder is removed when the job succeeds."""
    return join(bundle.spec.output.uri, names.WORK_FOLDER, owner_of(bundle))


def owner_of(bundle: Bundle) -> str:
    """Returns the name of the folders of this job at output.uri, which other jobs may use too. Outside Kubernetes the
    jobs of one output share them."""
    return bundle.job.uid if bundle.job else "local"


def place_of(bundle: Bundle, *parts: str) -> str:
    """Returns the URI of a file of the prepared data."""
    return join(work_prefix(bundle), PREPARED, *parts)


def write_manifest(storage: JobStorage, bundle: Bundle, manifest: Mapping[str, Any], written: datetime) -> None:
    """Writes the manifest of this preflight pod, whose files are in its own folder already. `written`: when the oldest
    of its files was."""
    if bundle.job is None:  # outside Kubernetes the jobs of one output share the folder
        storage.delete_prefix(place_of(bundle, USED))
    about = {"version": VERSION, "written": written.isoformat(), "folder": own_pod()}
    storage.write_bytes(place_of(bundle, MANIFEST), _as_bytes({**about, **manifest}))


def used_manifest(storage: JobStorage, bundle: Bundle) -> dict[str, Any]:
    """Returns the manifest that all attempts of the job read.

    Raises TrainerFailure DatasetNotFound if it was deleted, SpecInvalid if another version of the trainer wrote it in
    another format, and ValueError if it is damaged."""
    used = place_of(bundle, USED, MANIFEST)
    if not storage.exists(used):
        if not storage.exists(place_of(bundle, MANIFEST)):
            raise gone(bundle, place_of(bundle))
        storage.write_bytes(used, storage.read_bytes(place_of(bundle, MANIFEST)), if_absent=True)
    try:
        manifest = read_document(storage, used, json.loads)  # another pod of the attempt may be writing it
    except ValueError:  # its writer was killed, in a claim without hard links
        storage.write_bytes(used, storage.read_bytes(place_of(bundle, MANIFEST)))
        manifest = json.loads(storage.read_bytes(used))
    if not isinstance(manifest, dict):
        raise ValueError("the manifest is no object")
    if (version := manifest.get("version")) != VERSION:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"The prepared data at {place_of(bundle)} has format {version}, and this trainer reads format {VERSION}: "
            "spec.trainer.image of the FineTuneProfile was changed after the preflight of the job.",
            _prepare_again(bundle),
        )
    return manifest


def gone(bundle: Bundle, uri: str) -> TrainerFailure:
    """Returns the failure that prepared data was deleted. Another attempt would not find it either."""
    return TrainerFailure(
        FailureReason.DATASET_NOT_FOUND,
        f"The prepared data of the job at {uri} was deleted after preflight wrote it, by a lifecycle rule of the "
        "bucket or by a person. A lifecycle rule must keep it for longer than a job may be suspended or queued.",
        _prepare_again(bundle),
    )


class Renewal:
    """Writes the prepared data again while the job needs it, once it is a day old."""

    def __init__(
        self,
        storage: JobStorage,
        bundle: Bundle,
        folder: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`folder`: the downloaded files. They must stay unchanged."""
        self._storage, self._bundle, self._folder, self._clock = storage, bundle, folder, clock
        self._manifest = used_manifest(storage, bundle)
        self._written = datetime.fromisoformat(self._manifest["written"])

    def if_due(self, advance: Callable[[int], None] = lambda size: None) -> None:
        """Writes the data again if it is a day old. A failure is told, and tried again after another day.

        `advance`: gets the number of bytes sent, from any thread, and is called before each file. If it raises
        Cancelled, the writing ends with it."""
        now = self._clock()
        if is_young(self._written, now):
            return
        self._written = now
        try:
            self._write(now, advance)
        except Cancelled:
            raise
        except Exception as error:
            traceback.print_exception(error)
            print(
                f"The prepared data at {place_of(self._bundle)} was not written again, so a lifecycle rule may delete "
                "it before the next attempt.",
                flush=True,
            )

    def _write(self, now: datetime, advance: Callable[[int], None]) -> None:
        manifest, progress = self._manifest, Progress("Writing the prepared data again", "MB", divisor=MEGABYTE)
        source, cached = place_of(self._bundle, manifest["folder"]), manifest["cached"]
        places = {name: join(source, name) for name in manifest["files"]}
        if cached:
            places |= {name: join(cached["uri"], sha256) for name, sha256 in cached["files"].items()}

        def sent(size: int) -> None:
            advance(size)
            progress.advance(size)

        for name, uri in places.items():
            sent(0)
            self._storage.send(partial((self._folder / name).open, "rb"), uri, sent)
        sent(0)
        renewed = _as_bytes({**manifest, "written": now.isoformat()})
        self._storage.write_bytes(place_of(self._bundle, USED, MANIFEST), renewed)


def _prepare_again(bundle: Bundle) -> str:
    name = bundle.job.name if bundle.job else "NAME"
    return (
        f"Copy the job under another name, and set spec.resumeFrom to {{name: {name}}}, so that the new job prepares "
        "the data again and goes on from the newest checkpoint."
    )


def _as_bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2).encode()
