"""Places in the volumes of PersistentVolumeClaims. A path never leaves its volume, also not through a symbolic link.

What is in a volume was written by other pods. A link to a file of this pod, for example to a mounted Secret, must not
be read as a row."""

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from finetune_api import claims
from finetune_trainer.pod.liveness.heartbeat import attended, beat

_LOST_AND_FOUND = "lost+found"
"""A folder of the file systems ext3 and ext4, which only root can read."""


class NotMountedError(Exception):
    """The volume of the claim is not mounted in this process."""


class OutsideError(Exception):
    """The place is a symbolic link that leads out of the volume."""


class NoFileError(Exception):
    """The place is a folder, a pipe or a device."""


class NotUnicodeError(Exception):
    """The name of the file is not text in UTF-8, so no report or status can contain it."""


class Found(NamedTuple):
    """A file of a listing."""

    path: str
    """Its path in the volume, which may lead through links."""
    size: int
    """Its size in bytes."""
    place: Path
    """Where it really is. If a link leads to no file of the volume, where the link is."""
    is_linked: bool
    """Whether the path leads through a link."""


class _Folder(NamedTuple):
    """A folder of a listing."""

    place: Path
    path: str
    wanted: Hashable
    """Which names are wanted in it, as the caller of the listing says."""
    around: frozenset[Path]
    """This folder and those that contain its path. A link to one of them would never end."""


@dataclass(frozen=True)
class Volume:
    """The volume of a claim in the file system of this pod."""

    claim: str
    root: Path
    """The folder in which the volume is mounted, without symbolic links."""

    def place(self, path: str) -> Path:
        """Returns the absolute place of a path in the volume, without symbolic links. The file need not exist.

        Raises OutsideError if the place is not in the volume."""
        place = Path(os.path.realpath(self.root / path))
        if not place.is_relative_to(self.root):
            raise OutsideError
        return place

    def entry(self, path: str) -> Path:
        """Returns the place of a file that is written or deleted. If it is a link, it is the link itself."""
        folder, _, name = path.rpartition("/")
        return self.place(folder) / name

    def open(self, path: str) -> int:
        """Returns a descriptor of a file, for reading. Raises OutsideError, NoFileError or OSError.

        A link can be replaced between the look at it and the opening, so the opened file itself is looked at."""
        descriptor = os.open(self.place(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NoFileError
            if not Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(self.root):
                raise OutsideError
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def files(self, folder: str, enters: Callable[[str], Hashable], once: bool = False) -> Iterator[Found]:
        """Yields every file in the folder and in the subfolders that `enters` accepts, given their path. Beats at each
        folder: a volume can have millions.

        Links to folders of the volume are followed, but not to a folder that contains the link. A link to a file
        outside the volume is yielded with the size 0, so that reading it fails: leaving it out would lose rows
        silently. What another pod removes meanwhile is left out. Raises OutsideError for a link to a folder outside the
        volume.

        `once`: a folder to which several paths lead is read only for paths with different values of `enters`. Without
        it, ten folders with links to each other would be read millions of times."""
        place = self.place(folder)
        if not place.is_dir():
            return
        waiting, seen = deque([_Folder(place, folder.rstrip("/"), None, frozenset({place}))]), set[Hashable]()
        while waiting:
            here = waiting.popleft()
            beat()
            if once and (here.place, here.wanted) in seen:
                continue
            seen.add((here.place, here.wanted))
            for entry in _entries(here.place):
                own = f"{here.path}/{entry.name}" if here.path else entry.name
                if not _is_folder(entry):
                    yield from self._file(entry, own, here.place)
                elif own != _LOST_AND_FOUND and (wanted := enters(own)):
                    inner = self.place(own)
                    if inner not in here.around:
                        # The folders themselves come before all links, so that files get their own names.
                        wait = waiting.append if entry.is_symlink() else waiting.appendleft
                        wait(_Folder(inner, own, wanted, here.around | {inner}))

    def _file(self, entry: "os.DirEntry[str]", path: str, folder: Path) -> Iterator[Found]:
        """Yields the entry of a folder if it is a file, or a link that is not one to a folder."""
        if entry.is_symlink():
            yield self._behind(path, folder / entry.name)
        elif entry.is_file() and (size := _size(entry)) is not None:
            place = folder / entry.name
            yield Found(path, size, place, place != self.root / path)

    def _behind(self, path: str, link: Path) -> Found:
        try:
            place = self.place(path)
            return Found(path, place.stat().st_size, place, True)
        except (OutsideError, OSError):
            return Found(path, 0, link, True)


def _entries(place: Path) -> list["os.DirEntry[str]"]:
    """Returns what is in a folder, sorted by name; nothing if another pod has removed the folder meanwhile."""
    try:
        with os.scandir(place) as found:
            return sorted(attended(found), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # a link that leads to itself


def _size(file: "os.DirEntry[str]") -> int | None:
    """Returns the size in bytes; None if another pod has removed the file meanwhile."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


def volume_of(uri: str, mounts: Path) -> tuple[Volume, str]:
    """Returns the volume of a pvc:// URI and the path in it. `mounts`: the folder with the volumes, by the name of the
    claim. Raises NotMountedError if the volume is not there, and NotUnicodeError."""
    found = claims.split(uri)
    assert found, uri
    if re.search("[\ud800-\udfff]", uri):  # how Python stands for bytes that are not UTF-8
        raise NotUnicodeError
    claim, path = found[0], re.sub("/+", "/", found[1].lstrip("/"))
    root = Path(os.path.realpath(mounts / claim))
    if not root.is_dir():
        raise NotMountedError
    return Volume(claim, root), path
