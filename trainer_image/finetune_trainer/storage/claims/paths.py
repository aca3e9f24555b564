"""Places in the volumes of PersistentVolumeClaims. A path never leaves its volume, also not through a symbolic link.

What is in a volume was written by other pods. A link to a file of this pod, for example to a mounted Secret, must not
be read as a row."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from finetune_api import claims
from finetune_trainer.pod.heartbeat import attended, beat

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

    def files(self, folder: str, enters: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
        """Yields the path in the volume and the size in bytes of every file in the folder and in the subfolders that
        `enters` accepts, given their path. Beats at each folder: a volume can have millions.

        Links to folders of the volume are followed. A link to a file outside the volume is yielded with the size 0, so
        that reading it fails: leaving it out would lose rows silently. What another pod removes meanwhile is left out.
        Raises OutsideError for a link to a folder outside the volume."""
        place = self.place(folder)
        if place.is_dir():
            yield from self._files(place, folder.rstrip("/"), frozenset({place}), enters)

    def _files(
        self, place: Path, path: str, around: Set[Path], enters: Callable[[str], bool]
    ) -> Iterator[tuple[str, int]]:
        """`around`: the folders that contain this one. A link to one of them would never end."""
        beat()
        for entry in _entries(place):
            own = f"{path}/{entry.name}" if path else entry.name
            if _is_folder(entry):
                if own != _LOST_AND_FOUND and enters(own) and (inner := self.place(own)) not in around:
                    yield from self._files(inner, own, {*around, inner}, enters)
            elif entry.is_symlink():
                yield own, self._size_behind(own)
            elif entry.is_file() and (size := _size(entry)) is not None:
                yield own, size

    def _size_behind(self, link: str) -> int:
        try:
            return self.place(link).stat().st_size
        except (OutsideError, OSError):
            return 0


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
