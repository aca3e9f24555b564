"""Places the results of exactly one pod at output.uri, also if several pods of the job publish at the same time.

    .work/JOB_UID/results/POD/...     the files of one pod, with manifest.json, which is written last
    .work/JOB_UID/results/chosen      names the pod whose files are published; it is written only if it does not exist

Whoever publishes copies the files of the chosen pod. So a pod that was frozen in the middle of a copy, and goes on when
another one has published, replaces a file by the same bytes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.bundle import Bundle
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.rank import own_pod
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.storage.ownership import MANIFEST, published

RESULTS, CHOSEN = "results", "chosen"
Manifest = Mapping[str, Any]


def place(storage: JobStorage, bundle: Bundle, files: Sequence[Path], staging: Path, manifest: Manifest) -> Manifest:
    """Uploads `files`, and copies those of the chosen pod to output.uri, without the manifest. Returns the manifest of
    what is there now: the manifest of this pod, or that of another pod of the job that was faster.

    Paths relative to `staging` are kept. Raises TrainerFailure OutputOccupied if another job has published."""
    if (already := published(storage, bundle)) is not None:
        return already
    folder, pod = join(work_prefix(bundle), RESULTS), own_pod()
    try:
        for path in files:
            storage.upload_file(path, join(folder, pod, str(path.relative_to(staging))))
        storage.write_bytes(join(folder, pod, MANIFEST), as_bytes(manifest))
        return _copied(storage, bundle, _chosen(storage, folder, pod))
    except TrainerFailure:
        # Another pod of the job may have published meanwhile, and deleted the work folder.
        if (faster := published(storage, bundle)) is not None:
            return faster
        raise


def as_bytes(manifest: Manifest) -> bytes:
    """Returns the content of manifest.json."""
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode()


def _chosen(storage: JobStorage, folder: str, pod: str) -> str:
    """Returns the folder with the results to publish: the first one that was complete."""
    storage.write_bytes(join(folder, CHOSEN), pod.encode(), if_absent=True)
    first = join(folder, storage.read_bytes(join(folder, CHOSEN)).decode())
    if storage.exists(join(first, MANIFEST)):
        return first
    storage.write_bytes(join(folder, CHOSEN), pod.encode())  # a lifecycle rule or a person has deleted the other ones
    return join(folder, pod)


def _copied(storage: JobStorage, bundle: Bundle, source: str) -> Manifest:
    manifest: Manifest = json.loads(storage.read_bytes(join(source, MANIFEST)))
    # Only now: a pod that has published before the choice has deleted the choice with the work folder.
    if (already := published(storage, bundle)) is not None:
        return already
    for file in manifest["files"]:
        storage.copy(join(source, file["path"]), join(bundle.spec.output.uri, file["path"]))
    return manifest
