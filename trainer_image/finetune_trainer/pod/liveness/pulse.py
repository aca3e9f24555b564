"""The sign of life of a rank: a file in the folder in which the ranks meet. Its watchdog rewrites it every second.

The watchdog cannot end a process that is stopped or stuck in a driver, and the other ranks wait for that process. The
launcher sees that the file does not change."""

import os
from dataclasses import dataclass
from math import ceil

from finetune_trainer.pod.rank import Place

START_SECONDS = 900.0
"""How long a rank may take until its first sign of life, and to import the libraries."""


@dataclass(frozen=True)
class Sign:
    """What a rank has last written."""

    number: int = 0
    seconds: float = START_SECONDS
    """Within this time the rank signs again, or its own watchdog ends it."""


class Pulse:
    """The file of one rank. Without other ranks there is none, and nothing is written."""

    def __init__(self, here: Place) -> None:
        self._number = 0
        path = here.meeting / f"pulse-{here.rank}"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT) if here.ranks > 1 else None

    def sign(self, seconds: float) -> None:
        """Writes the next sign. It always has the same size, so that it needs no more room on a full disk."""
        if self._file is not None:
            self._number += 1
            os.pwrite(self._file, b"%010d %010d" % (self._number, ceil(seconds)), 0)

    def read(self) -> Sign:
        """Returns the last sign."""
        words = os.pread(self._file, 64, 0).split() if self._file is not None else []
        return Sign(*map(int, words)) if words else Sign()
