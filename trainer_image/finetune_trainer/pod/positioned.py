"""A readable stream of a known size with a position, for the streams of the trainer that are read in parts."""

import io
from abc import abstractmethod
from typing import Any


class Positioned(io.RawIOBase):
    """Keeps the position. A subclass reads from `_position` and moves it in `readinto`."""

    def __init__(self, size: int) -> None:
        """`size`: of the whole stream, in bytes."""
        super().__init__()
        self.size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position


class Ranges(Positioned):
    """Reads the stream by ranges, so that a broken connection costs one range and not the whole stream."""

    @abstractmethod
    def range(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` to `end`, without the byte at `end`."""

    def readinto(self, buffer: Any) -> int:
        data = self.range(self._position, min(self._position + len(buffer), self.size))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self.range(self._position, self.size)
        self._position = self.size
        return data
