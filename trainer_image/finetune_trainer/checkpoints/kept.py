"""Results of whole phases that a later attempt of the same job takes over: measurements and tuned weights.

Each result is a verified folder `kept/NAME-POD` below the job's work prefix. A result that is damaged, incomplete or from
another run is not used, and the log says why."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.bundle import Bundle
from finetune_trainer.checkpoints.folder import Unusable, read_folder, read_manifest, write_folder
from finetune_trainer.handover.prepared import Prepared, work_prefix
from finetune_trainer.handover.trainer_version import trainer_version
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.storage import JobStorage, join

ATTEMPT = "attempt"


@dataclass(frozen=True)
class Kept:
    """A result of an earlier attempt, downloaded."""

    folder: Path
    """The local folder with its files."""
    about: Mapping[str, Any]
    """What its writer said about it."""

    @property
    def attempt(self) -> int:
        """The number of the attempt that wrote it."""
        return int(self.about[ATTEMPT])


class KeptResults:
    """The kept results of one job."""

    def __init__(
        self, storage: JobStorage, bundle: Bundle, attempt: int, facts: Mapping[str, Any], scratch: Path
    ) -> None:
        """`facts`: what determines the results, see `facts_of`. `scratch`: the folder for downloads."""
        self._storage, self._attempt, self._facts, self._scratch = storage, attempt, facts, scratch
        self._place = join(work_prefix(bundle), "kept")

    def find(self, name: str) -> Kept | None:
        """Returns a usable result, or None. Prints why a result is not used.

        Raises TrainerFailure if the storage does not answer or denies access."""
        found = {path.split("/")[0] for path in self._storage.list_folder(self._place)}
        for folder in sorted(folder for folder in found if folder.rpartition("-")[0] or folder):
            if not folder.startswith(f"{name}-"):
                continue
            uri, into = join(self._place, folder), self._scratch / folder
            manifest = read_manifest(self._storage, uri, self._facts)
            if not isinstance(manifest, Unusable):
                manifest = read_folder(self._storage, uri, into, self._facts)
            if not isinstance(manifest, Unusable):
                return Kept(into, manifest.about)
            print(manifest.why, flush=True)
        return None

    def keep(self, name: str, files: Mapping[str, bytes | Path], **about: Any) -> None:
        """Writes a result for later attempts. If the storage refuses it, the log says so and the job goes on."""
        uri = join(self._place, f"{name}-{os.environ.get('POD_UID', 'local')}")
        try:
            self._storage.delete_prefix(uri)  # outside Kubernetes every attempt has the same name
            write_folder(self._storage, uri, files, {**self._facts, **about, ATTEMPT: self._attempt})
        except TrainerFailure as failure:
            print(f"A later attempt cannot take over the {name}, and makes them again: {failure.message}", flush=True)


def facts_of(bundle: Bundle, prepared: Prepared, device: str) -> dict[str, Any]:
    """Returns what determines the results of a job's phases. `device`: the type of the device, cpu or cuda."""
    return {
        "spec": bundle.spec_digest,
        "data": prepared.preflight.digest,
        "model files": dict(prepared.model_files),
        "trainer": trainer_version(),
        "device": device,
    }
