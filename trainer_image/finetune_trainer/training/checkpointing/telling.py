"""What the log says about checkpoints."""

from finetune_api.quantity import gibibytes
from finetune_trainer.pod.failure import failure_of

LONG_WAIT_SECONDS = 0.1
"""A longer wait of the training for a checkpoint is told in the log."""


def tell_failed(step: int, error: Exception) -> None:
    """Says that the checkpoint of `step` was not written because of `error`."""
    print(f"{_unwritten(step)} {failure_of(error).message}", flush=True)


def tell_no_room(step: int, size: int) -> None:
    """Says that the checkpoint of `step` was not written because its copy of `size` bytes has no room."""
    short = f"The pod has no memory for a copy of {gibibytes(size)}. Raise spec.compute.memory."
    print(f"{_unwritten(step)} {short}", flush=True)


def tell_wait(step: int, waited: float, size: int | None) -> None:
    """Says how many seconds the training `waited` for the checkpoint of `step`, if that was long. `size`: that
    of the state in bytes, if there was no memory for a copy."""
    why = f", because there is no memory for a copy of {gibibytes(size)}" if size is not None else ""
    if waited > LONG_WAIT_SECONDS:
        print(f"Training waited {waited:.2f} s for the checkpoint of step {step:,}{why}.", flush=True)


def _unwritten(step: int) -> str:
    """Returns the sentence that precedes the error of a checkpoint that was not written."""
    return f"The checkpoint of step {step:,} was not written. Training goes on, and the next checkpoint is tried again."
