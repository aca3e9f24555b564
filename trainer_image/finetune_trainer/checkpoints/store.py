"""The checkpoints of a job in its storage: one folder for each, below the job's work prefix.

    checkpoints/step-00000120-2.1-POD/   state.safetensors, state.json, manifest.json
    checkpoints/best-00000100-2.1-POD/   best.safetensors, manifest.json

The best weights have a folder of their own, which state.json names, so that they are uploaded once and not with each
checkpoint. Before POD, the uid of the pod that wrote the folder, are the number of its attempt and its turn in it.

Two pods of one job can write at the same time: a pod on a node that lost the API server may still reach the storage.
Whatever they do, the newest checkpoint that can be read is found, because

- two pods never write to the same folder,
- a checkpoint names only best weights that its own pod has uploaded,
- a pod deletes only its own folders and those of earlier pods, and these only when it has a checkpoint of its own."""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, NamedTuple

from finetune_trainer.checkpoints.folder import Manifest, Unusable, read_folder, read_manifest, write_folder
from finetune_trainer.pod.failure import Superseded, TrainerFailure
from finetune_trainer.pod.termination import stop_requested
from finetune_trainer.storage.job_storage import JobStorage, join

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in the work prefix of a job."""
KEEP = 2
"""Checkpoints that are kept by default: the newest one could be damaged."""
STATE, WORDS, BEST = "state.safetensors", "state.json", "best.safetensors"
RENEWED_SECONDS = 24 * 3600.0
"""Age at which the best weights are written again with the next checkpoint. A lifecycle rule of the bucket would
otherwise delete them during a long training."""
_FOLDER = re.compile(r"(step|best)-(\d{8,})-(\d+)\.(\d+)-(.+)")


class Turn(NamedTuple):
    """The place of a pod among the pods of its job. Of two pods with the same turn, neither is the later one."""

    attempt: int
    number: int
    """Counted from 1: how many pods of the attempt wrote before it. Kueue makes several pods for one attempt."""


class _Folder(NamedTuple):
    """What the name of a folder says."""

    name: str
    is_step: bool
    step: int
    turn: Turn
    pod: str

    @property
    def writer(self) -> tuple[Turn, str]:
        """The pod that wrote it."""
        return self.turn, self.pod


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

    def __init__(
        self,
        storage: JobStorage,
        uri: str,
        pod: str,
        facts: Mapping[str, Any],
        keep: int = KEEP,
        attempt: int = 1,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`pod`: uid of this pod. `facts`: what decides the steps. `keep`: number of checkpoints to keep. `attempt`:
        number of the attempt of this pod."""
        self._storage, self._uri, self._pod, self._facts, self._keep = storage, uri, pod, facts, keep
        self._attempt, self._clock, self._turn = attempt, clock, Turn(attempt, 0)
        self._good: list[tuple[str, str | None]] = []
        """The checkpoints that are known to be usable, oldest first, each with the folder of its best weights."""
        self._best: dict[int, float] = {}
        """When this pod wrote the best weights of a step."""

    def begin(self) -> None:
        """Takes the turn of this pod: after all pods of the job that have written until now. Has an effect only once.

        Raises Superseded if a later attempt has written, and TrainerFailure if the storage does not answer."""
        if self._turn.number:
            return
        turns = [folder.turn for folder in self._folders()]
        self._require_last(turns)
        self._turn = Turn(self._attempt, 1 + max((turn.number for turn in turns if turn >= self._turn), default=0))

    def best_name(self, best: BestWeights | None) -> str | None:
        """Returns the name of the folder for the best weights, which state.json has to name."""
        return None if best is None else self._named("best", best.step)

    def write(
        self,
        step: int,
        state: Callable[[], BinaryIO],
        words: bytes,
        best: BestWeights | None,
        advance: Callable[[int], None],
    ) -> None:
        """Uploads the checkpoint of step `step`, and then deletes older ones. If the storage refuses to delete them,
        the log says so, and the checkpoint counts. Call `begin` before.

        `state`: opens state.safetensors. `words`: content of state.json. `advance`: see `write_folder`. Raises
        TrainerFailure as JobStorage does. Raises Superseded if a later pod of the job writes checkpoints too; this one
        is then complete."""
        assert self._turn.number, "begin was not called"
        best_name = self.best_name(best)
        if best is not None and best_name is not None and not self._is_stored(best.step):
            write_folder(self._storage, join(self._uri, best_name), {BEST: best.path}, self._facts, advance)
            self._best[best.step] = self._clock()
        name = self._named("step", step)
        write_folder(self._storage, join(self._uri, name), {STATE: state, WORDS: words}, self._facts, advance)
        self._good.append((name, best_name))
        try:
            folders = self._folders()
            self._require_last(folder.turn for folder in folders)
            self._delete_older(step, folders)
        except TrainerFailure as failure:
            print(f"Checkpoints before step {step:,} could not be deleted: {failure.message}", flush=True)

    def newest(
        self, into: Path, best_named: Callable[[bytes], str | None], misfit: Callable[[Path, bytes], str | None]
    ) -> tuple[Found | None, list[str]]:
        """Downloads the usable checkpoint with the highest step to `into`. Returns it, or None, and a sentence for each
        checkpoint with a higher step that is not usable.

        `best_named`: reads from state.json the name of the best weights' folder; raises ValueError if it cannot read
        the file. `misfit`: gets the path of state.safetensors and the content of state.json; returns why this run
        cannot go on from them, or None. Prints how many folders have names of another format. Raises TrainerFailure if
        the storage does not answer."""
        skipped: dict[str, str] = {}
        self._tell_other_formats()
        # Listed again each time: another pod may have deleted this one after it has written a newer one.
        while name := next((name for name in self._newest_first() if name not in skipped), None):
            found = self._read(name, into, best_named, misfit)
            if isinstance(found, Found):
                self._good = [(found.name, found.best_name)]
                return found, list(skipped.values())
            skipped[name] = found
            shutil.rmtree(into, ignore_errors=True)
        return None, list(skipped.values())

    def unusable(self) -> list[Unusable]:
        """Returns why no checkpoint is usable, for each, newest first. Only sizes and manifests are read.

        Returns an empty list if one is usable, or if there are none: `is_empty` tells them apart. Raises TrainerFailure
        if the storage does not answer."""
        found: list[Unusable] = []
        for name in self._newest_first():
            read = read_manifest(self._storage, join(self._uri, name), self._facts)
            if not isinstance(read, Unusable):
                return []
            found.append(read)
        return found

    @property
    def is_empty(self) -> bool:
        """Whether there are no checkpoints, not even damaged ones."""
        return not self._newest_first()

    def _newest_first(self) -> list[str]:
        steps = (folder for folder in self._folders() if folder.is_step)
        return [
            folder.name for folder in sorted(steps, key=lambda each: (each.step, each.turn, each.pod), reverse=True)
        ]

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
            best_step = _folder(best_name).step if best_name else 0
        except ValueError:
            return f"{join(self._uri, name)} is not used: its {WORDS} is from another version of the trainer."
        if why := misfit(into / name / STATE, words):
            return f"{join(self._uri, name)} is not used: {why}."
        if best_name is None:
            return Found(name, into / name / STATE, words, None, None)
        best = read_folder(self._storage, join(self._uri, best_name), into / best_name, self._facts)
        if isinstance(best, Unusable):
            return f"{join(self._uri, name)} is not used, because {best.why}"
        return Found(name, into / name / STATE, words, BestWeights(best_step, into / best_name / BEST), best_name)

    def _named(self, kind: str, step: int) -> str:
        return f"{kind}-{step:08}-{self._turn.attempt}.{self._turn.number}-{self._pod}"

    def _folders(self) -> list[_Folder]:
        return [_folder(name) for name in self._names() if _FOLDER.fullmatch(name)]

    def _names(self) -> list[str]:
        """Returns the names of all folders."""
        return sorted({path.partition("/")[0] for path in self._storage.list_folder(self._uri) if "/" in path})

    def _tell_other_formats(self) -> None:
        if others := [name for name in self._names() if not _FOLDER.fullmatch(name)]:
            said = "1 folder has" if len(others) == 1 else f"{len(others):,} folders have"
            print(
                f"{said} a name of another format in {self._uri}, for example {others[0]}, as another version of the "
                "trainer writes them. They are not used as checkpoints, and not deleted.",
                flush=True,
            )

    def _is_stored(self, step: int) -> bool:
        """Whether this pod has written the best weights of this step, and need not write them again now. After SIGTERM
        there may only be time for the last step."""
        return step in self._best and (stop_requested() or self._clock() - self._best[step] < RENEWED_SECONDS)

    def _require_last(self, turns: Iterable[Turn]) -> None:
        """Raises Superseded if one of `turns` is that of a later pod. Before `begin`: of a later attempt."""
        own = self._turn if self._turn.number else Turn(self._attempt + 1, 0)
        if (last := max(turns, default=own)) > own:
            raise Superseded(f"a later pod of the job, in attempt {last.attempt}, stores checkpoints")

    def _delete_older(self, step: int, folders: Iterable[_Folder]) -> None:
        """Deletes all but the newest usable checkpoints up to step `step`, of this pod and of earlier ones.

        An earlier pod that is ahead may still be written to: its checkpoints of higher steps are left, and its best
        weights, which they name."""
        self._good = self._good[-self._keep :]
        kept = {name for pair in self._good for name in pair}
        ahead = {each.writer for each in folders if each.is_step and each.step > step}
        for folder in sorted(folders, reverse=True):  # checkpoints before the best weights that they name
            is_earlier = folder.turn < self._turn or folder.writer == (self._turn, self._pod)
            is_needed = folder.name in kept or folder.step > step or (folder.writer in ahead and not folder.is_step)
            if is_earlier and not is_needed:
                self._storage.delete_prefix(join(self._uri, folder.name))


def _folder(name: str) -> _Folder:
    """Returns what the name of a folder says. Raises ValueError if it is another name."""
    if (found := _FOLDER.fullmatch(name)) is None:
        raise ValueError(f"{name} is not the folder of a checkpoint")
    kind, step, attempt, number, pod = found.groups()
    return _Folder(name, kind == "step", int(step), Turn(int(attempt), int(number)), pod)


def _incomplete(manifest: Manifest, *names: str) -> str | None:
    missing = next((name for name in names if name not in manifest.files), None)
    return missing and f"its file {missing} is missing"
