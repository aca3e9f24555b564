"""Predicts the disk space that a training pod needs in its scratch volume. docs/sizing.md derives the terms."""

from dataclasses import dataclass

from finetune_trainer.sizing.memory import ADAM, Setup, trained_parameters
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.shards import BF16, FP32


@dataclass(frozen=True)
class Space:
    """Disk space beside the rows and the base model, in bytes, and what takes it."""

    size: float
    what: str


def checkpoint_bytes(shape: ModelShape, setup: Setup) -> float:
    """Returns the size of a checkpoint without the best weights: the trained parameters in fp32 and the state of the
    optimizer. Embeddings, whose state is always in fp32, count as other weights."""
    return (FP32 + ADAM[setup.optimizer]) * trained_parameters(shape, setup)


def most_space(shape: ModelShape, setup: Setup, keeps_best: bool, merge: bool) -> Space:
    """Returns the most space that an attempt takes beside the rows and the base model, also one that goes on from a
    checkpoint. `keeps_best`: whether the weights of the best step are kept. `merge`: whether a merged model is
    written."""
    is_full = setup.method == "Full"
    tuned = BF16 * shape.stored_parameters if is_full else FP32 * trained_parameters(shape, setup)
    best, merged = tuned * keeps_best, BF16 * shape.stored_parameters * merge
    collected = tuned if is_full and setup.shards > 1 else 0
    spaces = (
        Space(checkpoint_bytes(shape, setup) + best, "a checkpoint from which an attempt goes on"),
        # The kept weights, those that replace them, and those that are being uploaded.
        Space(3 * best, "the weights of the best step"),
        Space(best + tuned + max(collected, merged), "the results until they are published"),
        # Weights that an earlier attempt has trained are downloaded, and copied to the results.
        Space(2 * tuned + merged, "the results until they are published"),
    )
    return max(spaces, key=lambda space: space.size)
