"""Results of whole phases that a later attempt of the same job takes over: measurements and tuned weights.

Each result is a verified folder `kept/NAME-POD` below the job's work prefix. A result that is damaged, incomplete or
from another run is not used, and the log says why."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from finetune_trainer.checkpoints.background import LAST_UPLOAD_SECONDS, STORAGE_SPEED, Background
from finetune_trainer.checkpoints.folder import MANIFEST, Content, Unusable, read_folder, read_manifest, write_folder
from finetune_trainer.pod.failure import Cancelled, PeerFailed, StopRequested, Superseded, TrainerFailure, failure_of
from finetune_trainer.pod.liveness.heartbeat import quiet_work
from finetune_trainer.pod.progress import MEGABYTE, Progress
from finetune_trainer.pod.rank import own_pod
from finetune_trainer.pod.termination import seconds_left, stop_deferred, stop_requested
from finetune_trainer.storage.files import PATIENCE_SECONDS
from finetune_trainer.storage.job_storage import JobStorage, join

KEPT = "kept"
"""Folder of the results in the work prefix of a job."""
TRAINED = "trained"
"""Name of the tuned weights with the records of their training."""
WRITER = "writer.json"
"""The file that says which attempt wrote the result."""
PAUSE_SECONDS = 1.0
"""Pause between two tries to write a result before the process ends."""


@dataclass(frozen=True)
class Kept:
    """A result of an earlier attempt, downloaded."""

    folder: Path
    """The local folder with its files."""
    attempt: int
    """The number of the attempt that wrote it."""

    def __str__(self) -> str:
        """The name of the result, and of its writer."""
        return self.folder.name


@dataclass(frozen=True)
class _Missing:
    """A result that the storage has not taken yet. `results`: where it belongs. `then`: see `KeptResults.keep`."""

    results: "KeptResults"
    name: str
    files: Mapping[str, Content]
    then: Callable[[], None]

    @property
    def least_seconds(self) -> float:
        """How long a storage takes for the files where nothing is wrong."""
        known = (each for each in self.files.values() if isinstance(each, bytes | Path))
        return sum(each.stat().st_size if isinstance(each, Path) else len(each) for each in known) / STORAGE_SPEED


class _End:
    """The end of this process. `deadline`: value of monotonic() until which a process that failed may write results;
    None before the first of them."""

    deadline: float | None = None

    def seconds_left(self) -> float:
        if stop_requested():
            return seconds_left()
        if self.deadline is None:
            self.deadline = monotonic() + LAST_UPLOAD_SECONDS
        return min(max(0.0, self.deadline - monotonic()), seconds_left())


class KeptResults:
    """The kept results of one job, as one attempt uses them."""

    def __init__(
        self,
        storage: JobStorage,
        uri: str,
        attempt: int,
        facts: Mapping[str, Any],
        scratch: Path,
        counted: Callable[[int], None] = lambda results: None,
    ) -> None:
        """`uri`: the folder of all results. `facts`: what determines them. `scratch`: a folder for downloads.

        `counted`: called after each result that this rank writes, and by `count`, with the number of complete results
        in the folder, as far as this rank knows. Results of earlier attempts count too, so that the number grows only
        if this attempt adds something."""
        self._storage, self._uri, self._attempt, self._facts, self._scratch = storage, uri, attempt, facts, scratch
        self._counted, self._written = counted, set[str]()
        self._missing: dict[str, _Missing] = {}
        """The results that the storage has not taken yet, by their places: also one that is being written, because
        SIGTERM or the failure of another rank can interrupt it. All copies of this object share them."""
        self._end = _End()

    def on(self, **facts: Any) -> "KeptResults":
        """Returns the same results, for which `facts` must be equal too."""
        narrower = copy(self)
        narrower._facts = {**self._facts, **facts}
        return narrower

    def determined_by(self, facts: Mapping[str, Any]) -> "KeptResults":
        """Returns the same results, for which `facts` alone must be equal."""
        other = copy(self)
        other._facts = facts
        return other

    def has(self, name: str) -> bool:
        """Returns whether there is a result of this name, by its manifest and the sizes of its files.

        Raises TrainerFailure if the storage does not answer or denies access."""
        places = (join(self._uri, folder) for folder in self._folders_of(name))
        return any(not isinstance(read_manifest(self._storage, place, self._facts), Unusable) for place in places)

    @cached_property
    def _files(self) -> list[str]:
        """The files that were there when this attempt first looked."""
        return list(self._storage.list_folder(self._uri))

    def _folders_of(self, name: str) -> list[str]:
        """Returns the folders with results of this name."""
        folders = {path.partition("/")[0] for path in self._files}
        return sorted(folder for folder in folders if folder.startswith(f"{name}-"))

    def find(self, name: str, misfit: Callable[[Path], str | None] = lambda folder: None) -> Kept | None:
        """Returns a usable result of this name, or None. Prints why a result is not used.

        `misfit`: gets the folder of a result, and returns why this run cannot use it, or None. Raises TrainerFailure if
        the storage does not answer or denies access."""
        for folder in self._folders_of(name):
            into = self._scratch / folder
            found = read_folder(self._storage, join(self._uri, folder), into, self._facts)
            why = found.why if isinstance(found, Unusable) else misfit(into)
            if why is None:
                return Kept(into, int(json.loads((into / WRITER).read_bytes())["attempt"]))
            print(why, flush=True)
        return None

    def keep(
        self,
        name: str,
        files: Mapping[str, Content],
        again: bool = True,
        then: Callable[[], None] = lambda: None,
    ) -> bool:
        """Writes a result for later attempts. `name` contains no hyphen. Returns whether it was written: if the storage
        fails, the log says so and the job goes on.

        `again`: whether `keep_missing` tries it again; the files must then stay as they are. `then`: called once it is
        written."""
        self._begin(name, files, again, then)
        try:
            self._write_shown(name, files)
        except TrainerFailure as failure:
            self._lose(name, failure.message)
            return False
        self._written_now(name, then)
        self.keep_missing()  # the storage works again
        return True

    def keep_missing(self) -> None:
        """Tries again to write what the storage did not take. Call it between two phases of the work."""
        for place, missing in list(self._missing.items()):
            try:
                missing.results._write_shown(missing.name, missing.files)
            except TrainerFailure:
                return  # the first failure was told
            self._found_its_place(place)

    def seconds_at_the_end(self) -> float:
        """Returns how long a process that ends may still write results: after SIGTERM the rest of the grace period, and
        else as long as the last upload of a checkpoint may take, for all of them together."""
        return self._end.seconds_left()

    @contextmanager
    def missing_kept_at_the_end(self) -> Iterator[None]:
        """If the work inside ends with an exception, tries again and again to write what the storage did not take,
        for `seconds_at_the_end`. Without this, tuned weights are lost if the storage was away when they were written,
        and the pod is stopped while they are measured."""
        try:
            yield
        except Superseded:
            raise
        except (Exception, PeerFailed, StopRequested):
            if self._missing:
                with suppress(StopRequested), stop_deferred():  # why the work has ended is told, not a stop after it
                    self._keep_missing_last()
            raise

    def _keep_missing_last(self) -> None:
        while (left := self.seconds_at_the_end()) > 0:
            # A whole model is not begun: GPUs would be held for an upload that cannot end.
            place = next((place for place, missing in self._missing.items() if missing.least_seconds < left), None)
            if place is None:
                break
            missing = self._missing[place]
            try:
                if missing.results._write_within(missing.name, missing.files, left):
                    self._found_its_place(place)
            except TrainerFailure:
                sleep(min(PAUSE_SECONDS, self.seconds_at_the_end()))
        for missing in self._missing.values():
            missing.results._lose_at_the_end(missing.name)

    def _found_its_place(self, place: str) -> None:
        """Tells that a result which was missing is written now."""
        missing = self._missing[place]
        print(f"{place} is stored now. A later attempt will not have to repeat it.", flush=True)
        missing.results._written_now(missing.name, missing.then)

    def keep_last(
        self,
        name: str,
        files: Mapping[str, Content],
        seconds: float,
        again: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> bool:
        """Writes a result like `keep`, but gives up after `seconds`, and when the pod has to end. No other result can
        be written after that. `again`, `then`: see `keep`."""
        self._begin(name, files, again, then)
        try:
            written = self._write_within(name, files, seconds)
        except TrainerFailure as failure:
            self._lose(name, failure.message)
            return False
        if written:
            self._written_now(name, then)
        else:
            self._lose_at_the_end(name)
        return written

    def _write_within(self, name: str, files: Mapping[str, Content], seconds: float) -> bool:
        """Writes a result in a thread. Returns whether it ended within `seconds`. Raises TrainerFailure as `_write`
        does."""
        failed, background = list[TrainerFailure](), Background()

        def write(advance: Callable[[int], None]) -> None:
            try:
                self._write(name, files, advance)
            except TrainerFailure as failure:  # `_write` raises no other one: a dead thread would look like success
                failed.append(failure)

        ended = False
        try:
            with quiet_work(PATIENCE_SECONDS):  # of the requests, which are in the other thread
                background.start(write)
                ended = background.wait(seconds)
        finally:
            if not ended:
                background.cancel(0)
        if failed and ended:
            raise failed[0]
        return ended

    def _begin(self, name: str, files: Mapping[str, Content], again: bool, then: Callable[[], None]) -> None:
        """Notes for `keep_missing` that a result has to be written, if `again`."""
        if again:
            self._missing[self._place(name)] = _Missing(self, name, files, then)

    def _written_now(self, name: str, then: Callable[[], None]) -> None:
        """Notes and tells that a result is written."""
        place = self._place(name)
        self._missing.pop(place, None)
        self._written.add(place.removeprefix(join(self._uri, "")))
        self.count()
        then()

    def _write_shown(self, name: str, files: Mapping[str, Content]) -> None:
        """Writes a result and shows the progress. The files of a whole model take many minutes."""
        self._write(name, files, Progress(f"Storing {self._place(name)}", "MB", divisor=MEGABYTE).advance)

    def _write(self, name: str, files: Mapping[str, Content], advance: Callable[[int], None]) -> None:
        """Writes a result. `advance`: see `write_folder`. Raises TrainerFailure for every error."""
        uri, writer = self._place(name), json.dumps({"attempt": self._attempt}).encode()
        try:
            self._storage.delete_prefix(uri)  # outside Kubernetes the attempts of a job have the same name
            write_folder(self._storage, uri, {**files, WRITER: writer}, self._facts, advance)
        except (Cancelled, TrainerFailure):
            raise
        except Exception as error:  # no error of a storage is worth the work of the attempt
            raise failure_of(error) from error

    def count(self) -> None:
        """Tells how many results are complete: those that were there when this attempt first looked, of all ranks, and
        those that this rank has written."""
        earlier = {path.partition("/")[0] for path in self._files if path.endswith(f"/{MANIFEST}")}
        self._counted(len(earlier | self._written))

    def _place(self, name: str) -> str:
        return join(self._uri, f"{name}-{own_pod()}")

    def _lose_at_the_end(self, name: str) -> None:
        self._lose(name, "the storage did not answer before the pod had to end.")

    def _lose(self, name: str, why: str) -> None:
        uri = self._place(name)
        print(f"A later attempt will have to repeat what {uri} contains: {why}", flush=True)
