"""A readable stream of a known size with a position, for the streams of the trainer that are read in parts."""

import io


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
