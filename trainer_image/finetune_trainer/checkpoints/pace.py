"""Decides after which steps a checkpoint is written."""

from dataclasses import dataclass

MOST_SECONDS = 60.0
"""Longest time between two checkpoints, if they may cost that much."""
SHARES = 5
"""Number of equal parts of a run after each of which there is a checkpoint, even in a short run."""
MOST_COST = 0.01
"""Largest share of the time of the training that checkpoints may cost."""


@dataclass(frozen=True)
class Pace:
    """How often a training writes a checkpoint."""

    total_steps: int
    every: int | None
    """spec.training.checkpoint.every: steps between two checkpoints. None: after a fifth of the run or a minute,
    whichever comes first, but never at more than 1% of the time."""

    def due(self, step: int, *, last: int, passed: float, waited: float, spent: float, next_cost: float) -> bool:
        """Returns whether to write a checkpoint after step `step`.

        `last`: step of the last checkpoint, or the step at which the training began. `passed`: seconds of the training
        so far. `waited`: seconds since the last checkpoint. `spent`: seconds that checkpoints have cost so far.
        `next_cost`: seconds that the next one is expected to cost."""
        if step >= self.total_steps or step <= last:
            return False  # after the last step the results are written
        if self.every is not None:
            return step // self.every > last // self.every
        wanted = step - last >= self.total_steps / SHARES or waited >= MOST_SECONDS
        return wanted and spent + next_cost <= MOST_COST * passed


def first_cost(size: int) -> float:
    """Returns the expected cost of the first checkpoint, in seconds, before any was measured: the copy, its sha256 and
    its upload. `size`: in bytes."""
    return 0.01 + 2e-9 * size
