"""Notices a rank that is stopped, or stuck in a driver, while the others wait for it."""

from collections.abc import Iterable
from pathlib import Path

from finetune_trainer.pod.liveness.pulse import Pulse, Sign
from finetune_trainer.pod.rank import Place

MARGIN_SECONDS = 30.0
"""How much later than its own watchdog the launcher ends a rank. The watchdog tells more: what the rank was doing."""
SUSPICIOUS_SECONDS = 15.0
"""A rank that gives no sign of life for so long is the cause if another one reports a stall: it waited for this one."""
STATES = {
    "T": "Its process was stopped by a signal.",
    "D": "Its process waits in the kernel, as for a GPU driver or a disk.",
}
"""What the state of a process in /proc says about its silence."""


class Vigil:
    """For how long each rank has given no sign of life."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._pulses = {place: Pulse(place) for place in places}
        self._signs = dict.fromkeys(self._pulses, Sign())
        self._silence = dict.fromkeys(self._pulses, 0.0)

    def look(self, seconds: float) -> None:
        """Reads the signs. `seconds`: time since the last look in which the launcher itself was not frozen."""
        for place, pulse in self._pulses.items():
            sign = pulse.read()
            self._silence[place] = self._silence[place] + seconds if sign == self._signs[place] else 0.0
            self._signs[place] = sign

    def silence(self, place: Place, suspected: bool = False) -> float | None:
        """Returns for how many seconds the rank has given no sign of life; None if that is no longer than usual.

        `suspected`: whether another rank has reported a stall."""
        allowed = SUSPICIOUS_SECONDS if suspected else self._signs[place].seconds + MARGIN_SECONDS
        return self._silence[place] if self._silence[place] >= allowed else None


def why_silent(process: int) -> str:
    """Returns what the system says of a process that gives no sign of life, as a sentence; "" if it says nothing."""
    status = Path(f"/proc/{process}/stat")
    state = status.read_text().rpartition(")")[2].split()[0] if status.exists() else ""
    return STATES.get(state, "")
