"""Places the results of exactly one pod at output.uri, also if several pods of the job publish at the same time.

    .work/JOB_UID/results/POD/...     the files of one pod, with manifest.json, which is written last
    .work/JOB_UID/results/chosen-1    names the pod whose files are published; it is written only if it does not exist

Whoever publishes copies the files of the chosen pod. So a pod that was frozen in the middle of a copy, and goes on when
another one has published, replaces a file by the same bytes."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from finetune_api.bundle import Bundle
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.rank import own_pod
from finetune_trainer.storage.documents import read_document
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.storage.ownership import MANIFEST, published

RESULTS, CHOSEN = "results", "chosen"
END = "\n"
"""Last character of a choice. Without it, its writer is not done."""
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
    """Returns the folder with the results to publish: the first ones that were complete, and are so still.

    A lifecycle rule or a person may have deleted files of the chosen pod. Then there is another choice, under the next
    number: a choice is never replaced, so all pods of the job find the same one."""
    for number in count(1):
        choice = join(folder, f"{CHOSEN}-{number}")
        storage.write_bytes(choice, f"{pod}{END}".encode(), if_absent=True)
        try:
            named = read_document(storage, choice, _pod_named)
        except ValueError:
            print(f"{choice} is damaged, because its writer was killed. It is not used.", flush=True)
            continue
        if named == pod:
            break
        if (why := _incomplete(storage, join(folder, named))) is None:
            return join(folder, named)
        print(f"The results in {join(folder, named)} were chosen and are not used: {why}.", flush=True)
    return join(folder, pod)


def _pod_named(choice: bytes) -> str:
    """Returns the pod that a choice names. Raises ValueError if its end is missing."""
    text = choice.decode()
    if not text.endswith(END):
        raise ValueError("the end is missing")
    return text.removesuffix(END)


def _incomplete(storage: JobStorage, source: str) -> str | None:
    """Returns why the results of a pod are not complete, as a clause, or None if they are."""
    sizes = storage.list_folder(source)
    if MANIFEST not in sizes:
        return f"{MANIFEST} is missing"
    for file in json.loads(storage.read_bytes(join(source, MANIFEST)))["files"]:
        if file["path"] not in sizes:
            return f"{file['path']} is missing"
        if sizes[file["path"]] != file["size"]:
            return f"{file['path']} has {sizes[file['path']]:,} bytes instead of {file['size']:,}"
    return None


def _copied(storage: JobStorage, bundle: Bundle, source: str) -> Manifest:
    manifest: Manifest = json.loads(storage.read_bytes(join(source, MANIFEST)))
    # Only now: a pod that has published before the choice has deleted the choice with the work folder.
    if (already := published(storage, bundle)) is not None:
        return already
    for file in manifest["files"]:
        storage.copy(join(source, file["path"]), join(bundle.spec.output.uri, file["path"]))
    return manifest
