"""The checkpoints of a job in its storage: one folder for each, below the job's work prefix.

    checkpoints/step-00000120-POD/   state.safetensors, state.json, manifest.json
    checkpoints/best-00000100-POD/   best.safetensors, manifest.json

The best weights have a folder of their own, which state.json names, so that they are uploaded once and not with each
checkpoint. POD is the uid of the pod that wrote the folder: two pods of one job never write to the same folder."""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune_trainer.checkpoints.folder import Manifest, Unusable, read_folder, read_manifest, write_folder
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, join

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in the work prefix of a job."""
KEEP = 2
"""Checkpoints that are kept by default: the newest one could be damaged."""
STATE, WORDS, BEST = "state.safetensors", "state.json", "best.safetensors"
_STEP = re.compile(r"step-(\d{8,})-.+")
_BEST = re.compile(r"best-(\d{8,})-.+")


@dataclass(frozen=True)
class BestWeights:
    """A file with the weights of the best step so far."""

    step: int
    path: Path


@dataclass(frozen=True)
class Found:
    """A usable checkpoint, downloaded."""

    name: str
    state: Path
    words: bytes
    """The content of state.json."""
    best: BestWeights | None
    """The kept weights of the best step, if the checkpoint has some."""
    best_name: str | None
    """The folder of these weights."""


class CheckpointStore:
    """The folder `uri` with the checkpoints of one job, as one pod uses it."""

    def __init__(self, storage: JobStorage, uri: str, pod: str, facts: Mapping[str, Any], keep: int = KEEP) -> None:
        """`pod`: uid of this pod. `facts`: what decides the steps. `keep`: number of checkpoints to keep."""
        self._storage, self._uri, self._pod, self._facts, self._keep = storage, uri, pod, facts, keep
        self._good: list[tuple[str, str | None]] = []
        """The checkpoints that are known to be usable, oldest first, each with the folder of its best weights."""
        self._best: dict[int, str] = {}

    def best_name(self, best: BestWeights | None) -> str | None:
        """Returns the name of the folder for the best weights, which state.json has to name."""
        return None if best is None else self._best.get(best.step, f"best-{best.step:08}-{self._pod}")

    def write(
        self,
        step: int,
        state: Callable[[], BinaryIO],
        words: bytes,
        best: BestWeights | None,
        advance: Callable[[int], None],
    ) -> None:
        """Uploads the checkpoint of step `step`, and then deletes older ones. If the storage refuses to delete them,
        the log says so, and the checkpoint counts.

        `state`: opens state.safetensors. `words`: content of state.json. `advance`: see `write_folder`. Raises
        TrainerFailure as JobStorage does."""
        best_name = self.best_name(best)
        if best is not None and best_name is not None and best.step not in self._best:
            write_folder(self._storage, join(self._uri, best_name), {BEST: best.path}, self._facts, advance)
            self._best[best.step] = best_name
        name = f"step-{step:08}-{self._pod}"
        write_folder(self._storage, join(self._uri, name), {STATE: state, WORDS: words}, self._facts, advance)
        self._good.append((name, best_name))
        try:
            self._delete_older(step)
        except TrainerFailure as failure:
            print(f"Checkpoints before step {step:,} could not be deleted: {failure.message}", flush=True)

    def newest(
        self, into: Path, best_named: Callable[[bytes], str | None], misfit: Callable[[Path, bytes], str | None]
    ) -> tuple[Found | None, list[str]]:
        """Downloads the usable checkpoint with the highest step to `into`. Returns it, or None, and a sentence for each
        checkpoint with a higher step that is not usable.

        `best_named`: reads from state.json the name of the best weights' folder; raises ValueError if it cannot read
        the file. `misfit`: gets the path of state.safetensors and the content of state.json; returns why this run
        cannot go on from them, or None. Raises TrainerFailure if the storage does not answer."""
        skipped: list[str] = []
        for name in self._newest_first():
            found = self._read(name, into, best_named, misfit)
            if isinstance(found, Found):
                self._good = [(found.name, found.best_name)]
                if found.best and found.best_name:
                    self._best[found.best.step] = found.best_name
                return found, skipped
            skipped.append(found)
            shutil.rmtree(into, ignore_errors=True)
        return None, skipped

    def why_unusable(self) -> list[str]:
        """Returns why no checkpoint is usable, a sentence for each, newest first. Only sizes and manifests are read.

        Returns an empty list if one is usable, or if there are none: `is_empty` tells them apart. Raises TrainerFailure
        if the storage does not answer."""
        said: list[str] = []
        for name in self._newest_first():
            read = read_manifest(self._storage, join(self._uri, name), self._facts)
            if not isinstance(read, Unusable):
                return []
            said.append(read.why)
        return said

    @property
    def is_empty(self) -> bool:
        """Whether there are no checkpoints, not even damaged ones."""
        return not self._names(_STEP)

    def _newest_first(self) -> list[str]:
        return sorted(self._names(_STEP), key=_order, reverse=True)

    def _read(
        self,
        name: str,
        into: Path,
        best_named: Callable[[bytes], str | None],
        misfit: Callable[[Path, bytes], str | None],
    ) -> Found | str:
        read = read_folder(self._storage, join(self._uri, name), into / name, self._facts)
        if isinstance(read, Unusable):
            return read.why
        if why := _incomplete(read, STATE, WORDS):
            return f"{join(self._uri, name)} is not used: {why}."
        words = (into / name / WORDS).read_bytes()
        try:
            best_name = best_named(words)
            best_step = _order(best_name)[0] if best_name else 0
        except (ValueError, IndexError):
            return f"{join(self._uri, name)} is not used: its {WORDS} is from another version of the trainer."
        if why := misfit(into / name / STATE, words):
            return f"{join(self._uri, name)} is not used: {why}."
        if best_name is None:
            return Found(name, into / name / STATE, words, None, None)
        best = read_folder(self._storage, join(self._uri, best_name), into / best_name, self._facts)
        if isinstance(best, Unusable):
            return f"{join(self._uri, name)} is not used, because {best.why}"
        return Found(name, into / name / STATE, words, BestWeights(best_step, into / best_name / BEST), best_name)

    def _names(self, pattern: re.Pattern[str]) -> set[str]:
        folders = {path.partition("/")[0] for path in self._storage.list_folder(self._uri)}
        return {name for name in folders if pattern.fullmatch(name)}

    def _delete_older(self, step: int) -> None:
        """Deletes all but the newest usable checkpoints up to step `step`. Those of higher steps are another pod's."""
        self._good = self._good[-self._keep :]
        kept = {name for pair in self._good for name in pair}
        every: Iterable[str] = self._names(_STEP) | self._names(_BEST)
        for name in sorted(name for name in every if name not in kept and _order(name)[0] <= step):
            self._storage.delete_prefix(join(self._uri, name))


def _order(name: str) -> tuple[int, str]:
    """Returns the step of a folder and its name. Raises ValueError if the name has no step."""
    return int(name.split("-")[1]), name


def _incomplete(manifest: Manifest, *names: str) -> str | None:
    missing = next((name for name in names if name not in manifest.files), None)
    return missing and f"its file {missing} is missing"
