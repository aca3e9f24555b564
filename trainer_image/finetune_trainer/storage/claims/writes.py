"""Writes files in the volume of a PersistentVolumeClaim, so that a reader finds a file whole or not at all.

A file is written below the job's work folder and then moved. What a killed pod leaves goes with that folder."""

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from finetune_trainer.pod.liveness.heartbeat import attended
from finetune_trainer.pod.rank import own_pod
from finetune_trainer.storage.claims.own_disk import OwnDiskError
from finetune_trainer.storage.claims.paths import Volume

TRIES = 3
PARTIAL = "partial-"
"""Begins the name of a file that is not whole yet. The pod that writes it follows."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REMOVED = {errno.ENOENT, errno.ESTALE}
"""What follows if another pod has removed the partial file of this one, which it takes for one of a killed pod, or an
empty folder. ESTALE is what NFS answers."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
"""What file systems without hard links answer, such as SMB and some that keep their files in an object storage."""


class FullError(Exception):
    """The volume has no space left, or its quota is used up."""


def name_of_partial() -> str:
    """Returns how the names of this pod's partial files begin."""
    return f"{PARTIAL}{own_pod()}-"


def new_partial(work: Path) -> Path:
    """Returns the place of another partial file of this pod in the folder `work`."""
    return work / f"{name_of_partial()}{uuid.uuid4().hex}"


def put(volume: Volume, path: str, work: str, fill: Callable[[BinaryIO], object], if_absent: bool = False) -> bool:
    """Writes the file at `path`. `fill` writes its content, and may be called again. With `if_absent`, only if the file
    does not exist, atomically. Returns whether it was written. `work`: path of the work folder.

    Raises FullError, OutsideError or OSError."""
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            return _put(volume.entry(path), volume.place(work), fill, if_absent)
        except OwnDiskError:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise FullError from error
            if last or error.errno not in _REMOVED:
                raise
    raise AssertionError("unreachable")


def link(volume: Volume, source: str, path: str, work: str) -> bool:
    """Gives the file at `source` the name `path` too, in place of the file there. Needs no space: nothing writes into a
    file that exists. Returns False if the file system has no hard links. Raises OutsideError or OSError."""
    for _ in range(TRIES - 1):
        with suppress(FileNotFoundError):  # another pod has removed the partial file, or an empty folder
            return _link(volume, source, path, work)
    return _link(volume, source, path, work)


def _link(volume: Volume, source: str, path: str, work: str) -> bool:
    place, folder = volume.entry(path), volume.place(work)
    part = new_partial(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.hardlink_to(volume.place(source))
        place.parent.mkdir(parents=True, exist_ok=True)
        part.replace(place)
        _sync(place.parent)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    finally:
        part.unlink(missing_ok=True)
        _ = removed(folder) and removed(folder.parent)
    return True


def remove(root: Path, path: str) -> None:
    """Deletes the file at `path` below the folder `root`, if it exists, and the folders below `root` that are empty
    then. Of a path through a link only the link is deleted: what it leads to is not the job's."""
    place, inside = root / path, _around(root, path)
    deleted = next((folder for folder in reversed(inside) if folder.is_symlink()), place)
    deleted.unlink(missing_ok=True)
    for folder in deleted.parents:
        if folder not in inside or not removed(folder):
            break


def remove_empty(root: Path, path: str) -> None:
    """Deletes the folder at `path` below the folder `root` if no file is left in it, and the empty folders and the
    links in it. Of the folders around it, those go that are empty then, without `root`. A link is never followed."""
    place, inside = root / path, _around(root, path)
    if any(folder.is_symlink() for folder in (place, *inside)):
        remove(root, path)
        return
    for walked, inner, files in attended(os.walk(place, topdown=False)):
        for link in (each for name in (*inner, *files) if (each := Path(walked) / name).is_symlink()):
            link.unlink(missing_ok=True)
        if Path(walked) != root:
            removed(Path(walked))
    for folder in inside:
        if not removed(folder) and folder.exists():
            break


def _around(root: Path, path: str) -> list[Path]:
    """Returns the folders between `root` and the place at `path` below it, the innermost first."""
    return [folder for folder in (root / path).parents if folder != root and folder.is_relative_to(root)]


def make_durable(file: BinaryIO) -> None:
    """Returns when the content of an open file outlives a crash of its node. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def _put(place: Path, work: Path, fill: Callable[[BinaryIO], object], if_absent: bool) -> bool:
    part = new_partial(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            fill(file)
            make_durable(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        if if_absent and not placed_as_new(part, place):
            return False
        if not if_absent:
            part.replace(place)
        _sync(place.parent)
        return True
    finally:
        part.unlink(missing_ok=True)
        _ = removed(work) and removed(work.parent)


def placed_as_new(part: Path, place: Path) -> bool:
    """Gives the file `part` the name `place` too. Returns False if that exists."""
    try:
        place.hardlink_to(part)
    except FileExistsError:
        # A server of NFS whose answer was lost refuses the repeated request, which it has already served.
        return part.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _copied_as_new(part, place)
    return True


def _copied_as_new(part: Path, place: Path) -> bool:
    """Copies `part` to `place`. Returns False if that exists. Files that are written so are small.

    Whoever finds a copy that stays half may remove it (`leftovers`), so the copy is looked at when it is written.
    Raises OSError ESTALE if it is not there any more."""
    content = part.read_bytes()
    try:
        copy = place.open("xb")
    except FileExistsError:
        return False
    try:
        with copy, part.open("rb") as file:
            copyfileobj(file, copy)
            make_durable(copy)
    except BaseException:
        with suppress(OSError):
            if content.startswith(place.read_bytes()):
                place.unlink()  # a half manifest keeps the other pods waiting
        raise
    if not (place.is_file() and place.read_bytes() == content):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return True


def removed(folder: Path) -> bool:
    """Removes a folder if it is empty. Returns whether it did."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
