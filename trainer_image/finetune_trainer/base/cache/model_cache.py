"""Base models that earlier pods of the namespace have fetched, in the volume of a PersistentVolumeClaim.

entries/KEY/ has the files of one model, and cached.json with the sha256 of each. An entry is written below partial/ and
renamed, so it is always whole. Pods on several nodes use the volume at the same time, without locks: not every network
file system has them. A pod that copies an entry keeps a file in it that tells the others so.

A pod that stores a model first reserves its bytes below partial/. It waits until the clock of the volume has gone on.
Then it looks what others have reserved: all reservations of the same time or before are there, and the pods of later
ones see its own. A reservation counts for all pods that reserved later or at the same time, so of several pods the last
one counts those of all. Of several pods with the same model only the first one makes room and stores it. A reservation
ends when the model is an entry, or with what a killed pod has left."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from finetune_trainer.base.cache.reservations import GONE, Reservation, before, reservations, reserve, to_come
from finetune_trainer.base.cache.room import Entry, to_evict
from finetune_trainer.base.model_files import Files, Pins, without_card
from finetune_trainer.pod.at_once import each_at_once
from finetune_trainer.pod.liveness.heartbeat import beat
from finetune_trainer.storage.claims.writes import make_durable
from finetune_trainer.storage.files import COPY_BYTES

CACHED = "cached.json"
IN_USE = "in-use-"
"""Beginning of the name of the file with which a pod says that it copies the entry."""
SIGN_SECONDS = 60.0
"""How often a pod says so again."""
CLOCK_SECONDS = 3.0
"""How long a pod waits at most until the clock of the volume goes on. Some file systems count every second second."""
ABANDONED_SECONDS = 3600.0
"""After which time without a sign a pod counts as killed."""


class DamagedError(Exception):
    """A file of the cache is not the one that was stored."""


def key_of(uri: str, files: Files, pins: Pins) -> str:
    """Returns the key of a model: a sha256 of its URI and of the identity of each file, as preflight found them. The
    model card does not count: the cache has none, and an edited one must not store the weights a second time."""
    about = [uri.rstrip("/"), without_card(files), dict(pins)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class ModelCache:
    """The cache in one volume. A method raises OSError if the volume fails."""

    def __init__(self, root: Path, most: int | None) -> None:
        """`most`: bytes that all models together may have; None if only the volume limits them."""
        self._entries, self._partial, self._most = root / "entries", root / "partial", most

    def copy(self, key: str, files: Files, to: Path) -> bool:
        """Copies the model to the folder `to`, and compares each file with its sha256. Returns False if the cache does
        not have the model. Raises DamagedError after removing an entry that is not what was stored."""
        entry = self._entries / key
        if not entry.is_dir():
            return False
        try:
            digests = _digests(entry, files)
            with _in_use(entry) as sign:
                to.mkdir(parents=True, exist_ok=True)

                def copy(name: str, needed: Callable[[], None]) -> None:
                    if _copied(entry / name, to / name, needed, sign, durable=False) != digests[name]:
                        raise DamagedError(f"{name} has another sha256")

                each_at_once(copy, files)
        except DamagedError:
            self._remove(key)
            raise
        except FileNotFoundError as error:  # also if the entry has just left the cache
            self._remove(key)
            raise DamagedError(f"{Path(error.filename).name} is missing") from error
        return True

    def store(self, key: str, files: Files, source: Path) -> bool:
        """Stores the model in the folder `source`, unless the cache has it or another pod is storing it. Returns False
        if there is no room for it."""
        self._partial.mkdir(parents=True, exist_ok=True)
        self._entries.mkdir(exist_ok=True)
        self._remove_abandoned(self._now())
        if self._has(key, files):
            return True
        part = self._partial / uuid.uuid4().hex
        try:
            part.mkdir()
            sign, own = reserve(part, key, sum(files.values()))
            self._wait_for_clock(own)
            # Before the entries: a model that is renamed meanwhile is in one of them.
            found = reservations(self._partial)
            if self._is_stored_by_another(own, found) or self._has(key, files):
                return True
            if not self._make_room(own, found):
                return False
            digests: dict[str, str] = {}

            def copy(name: str, needed: Callable[[], None]) -> None:
                digests[name] = _copied(source / name, part / name, needed, lambda: None, durable=True)

            each_at_once(copy, files)
            _written(part / CACHED, json.dumps({"files": digests}).encode())
            try:
                part.rename(self._entries / key)
            except OSError:
                if not (self._entries / key / CACHED).exists():  # else another pod has stored it meanwhile
                    raise
            (self._entries / key / sign.name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return True

    def _has(self, key: str, files: Files) -> bool:
        """Returns whether the model is an entry, and marks it as used. Removes an entry that is not whole."""
        entry = self._entries / key
        self._clock()  # shows the entries as they are now
        if not entry.is_dir():
            return False
        try:
            _digests(entry, files)
            if all((entry / name).stat().st_size == size for name, size in files.items()):
                os.utime(entry / CACHED)
                return True
        except (DamagedError, FileNotFoundError):
            pass
        self._remove(key)
        return False

    def _wait_for_clock(self, own: Reservation) -> None:
        """Returns when a reservation that is made now is younger than `own`."""
        until = monotonic() + CLOCK_SECONDS
        while self._clock() <= own.made and monotonic() < until:
            sleep(0.001)

    def _is_stored_by_another(self, own: Reservation, found: list[Reservation]) -> bool:
        """Returns whether the pod of an earlier reservation stores the same model."""
        if not any(each.key == own.key and each < own for each in found):
            return False
        print(f"Another pod stores the model {own.key[:12]} in the cache, so this one does not.", flush=True)
        return True

    def _make_room(self, own: Reservation, found: list[Reservation]) -> bool:
        """Removes the least recently used models until the bytes of `own` fit beside all that was reserved before.
        Removes none if they would not fit then. `found`: all reservations."""
        others, now = before(own, found), self._now()
        keys = {each.key for each in others}
        # A model that has just been stored stays: its reservations do not count beside it.
        entries = [replace(each, in_use=each.in_use or each.key in keys) for each in self._all(now)]
        coming = to_come(others, (entry.key for entry in entries))
        space = os.statvfs(self._entries)
        free = space.f_bavail * space.f_frsize - sum(max(0, each.size - each.written) for each in coming)
        most = None if self._most is None else self._most - sum(max(each.size, each.written) for each in coming)
        leaving = to_evict(entries, own.size, free, most)
        for key in leaving or ():
            self._remove(key)
            print(f"The model {key[:12]} left the cache, because it was not used for the longest time.", flush=True)
        return leaving is not None

    def _all(self, now: float) -> Iterator[Entry]:
        for folder in self._entries.iterdir():
            try:
                found = {path.name: path.stat() for path in folder.iterdir()}
            except (FileNotFoundError, NotADirectoryError):  # removed by another pod
                continue
            signs = [about.st_mtime for name, about in found.items() if name.startswith(IN_USE)]
            used = found[CACHED].st_mtime if CACHED in found else 0.0
            in_use = any(now - sign < ABANDONED_SECONDS for sign in signs)
            yield Entry(folder.name, sum(about.st_size for about in found.values()), used, in_use)

    def _remove(self, key: str) -> None:
        """Removes an entry. It vanishes at once, before its files do."""
        gone = self._partial / f"{GONE}{uuid.uuid4().hex}"
        self._partial.mkdir(parents=True, exist_ok=True)
        try:
            (self._entries / key).rename(gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def _remove_abandoned(self, now: float) -> None:
        """Removes what killed pods have left, and what a pod is deleting."""
        for folder in self._partial.iterdir():
            beat()
            if folder.name.startswith(GONE) or now - _newest(folder, now) > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    def _now(self) -> float:
        """Returns the time by the clock that dates the files, in seconds. It can differ from that of the node."""
        return self._clock() / 1e9

    def _clock(self) -> int:
        """Returns the same time in nanoseconds. A network file system then also shows the entries as they are now: it
        keeps the list of a folder until the node changes it."""
        clock = self._entries / f"clock-{uuid.uuid4().hex}"
        clock.touch()
        try:
            return clock.stat().st_mtime_ns
        finally:
            clock.unlink()


@contextmanager
def _in_use(entry: Path) -> Iterator[Callable[[], None]]:
    """Keeps others from removing the entry. Provides a function that must be called again and again."""
    sign, said = entry / f"{IN_USE}{uuid.uuid4().hex}", [monotonic()]

    def again() -> None:
        if monotonic() - said[0] > SIGN_SECONDS:
            said[0] = monotonic()
            sign.touch()

    sign.touch()
    (entry / CACHED).touch(exist_ok=True)
    try:
        yield again
    finally:
        sign.unlink(missing_ok=True)


def _newest(folder: Path, now: float) -> float:
    """Returns when something in the folder was changed last; `now` if it is being removed."""
    times = []
    with suppress(FileNotFoundError):  # the folder vanishes, also while it is listed
        for path in (folder, *folder.rglob("*")):
            times.append(path.stat().st_mtime)
        return max(times)
    return now


def _digests(entry: Path, files: Files) -> dict[str, Any]:
    """Returns the sha256 of each file of an entry. Raises DamagedError if they are not known."""
    try:
        found = json.loads((entry / CACHED).read_bytes())["files"]
        if set(found) == set(files):
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise DamagedError(f"{CACHED} is damaged")


def _copied(source: Path, to: Path, needed: Callable[[], None], sign: Callable[[], None], durable: bool) -> str:
    """Copies a file. Returns the sha256 of what was copied. `needed`: raises an exception if it no longer is.
    `durable`: whether the copy must outlive a crash of its node."""
    digest = hashlib.sha256()
    with source.open("rb") as file, to.open("wb") as copy:
        while data := file.read(COPY_BYTES):
            needed()
            sign()
            beat()
            digest.update(data)
            copy.write(data)
        if durable:
            make_durable(copy)
    return digest.hexdigest()


def _written(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        make_durable(file)
