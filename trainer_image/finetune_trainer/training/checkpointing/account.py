"""When a checkpoint is due, and what the checkpoints of an attempt cost."""

from collections.abc import Callable

from finetune_trainer.checkpoints.pace import Pace, first_cost


class Account:
    """The time that the checkpoints of one attempt have taken from its training."""

    def __init__(self, pace: Pace, clock: Callable[[], float]) -> None:
        self._pace, self._clock = pace, clock
        self._last, self._blocked, self._expected = 0, 0.0, 0.0
        self._training_began = self._last_time = clock()

    def begin(self, step: int, size: int) -> None:
        """Starts the clock of the training after `step`. `size`: bytes of a checkpoint."""
        self._last, self._expected = step, first_cost(size)
        self._training_began = self._last_time = self._clock()

    def due(self, step: int, uploaded: int, cpu_seconds: float) -> bool:
        """Returns whether to take a checkpoint of `step`. `uploaded`: number of uploads. `cpu_seconds`: processor
        time of them."""
        now, spent = self._clock(), self._blocked + cpu_seconds
        return self._pace.due(
            step,
            last=self._last,
            passed=now - self._training_began,
            waited=now - self._last_time,
            spent=spent,
            next_cost=spent / uploaded if uploaded else self._expected,
        )

    def tried(self, step: int) -> None:
        """Notes that the checkpoint of `step` was taken, or cannot be. The next one is due some time later."""
        self._last, self._last_time = step, self._clock()

    def waited(self, seconds: float) -> None:
        """Notes how long training waited for a checkpoint."""
        self._blocked += seconds

    def tell(self, uploaded: int, cpu_seconds: float) -> None:
        """Says in the log what the checkpoints of this attempt cost. The arguments are those of `due`."""
        passed, spent = self._clock() - self._training_began, self._blocked + cpu_seconds
        share = f"{spent / max(passed, 1e-9):.2%}"
        print(
            f"Checkpoints: {uploaded:,} uploaded. Training waited {self._blocked:.2f} s for them, and their upload "
            f"took {cpu_seconds:.2f} s of processor time: {share} of {passed:.1f} s.",
            flush=True,
        )
