"""What the run uses where the spec left the choice open, by the rules the fields of `finetune_api.job` state."""

from collections.abc import Sequence
from math import ceil, floor
from typing import Literal

import numpy as np

from finetune_api.job import FineTuneJobSpec, MethodType, Training
from finetune_api.reasons import FailureReason
from finetune_api.status import Resolved
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.row_store import Example, lengths, prompt_lengths

LONGEST_BY_DEFAULT = 4096
SMALL_MODEL = 1_000_000_000
MICRO_BATCH_TOKENS = 2048


def sequence_limit(training: Training, longest: int, context: int | None) -> int:
    """Longest row in tokens: as given, or else the longest of the data within the model's context and 4096.

    Raises TrainerFailure SpecInvalid where more is asked for than the model's context."""
    if training.max_sequence_length is None:
        return min(longest, LONGEST_BY_DEFAULT, context or LONGEST_BY_DEFAULT)
    if context is not None and training.max_sequence_length > context:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"training.maxSequenceLength {training.max_sequence_length} is more than the model's context of {context}.",
        )
    return training.max_sequence_length


def resolve(
    spec: FineTuneJobSpec,
    parameters: int,
    limit: int,
    prompt_format: Literal["ChatTemplate", "Plain"],
    train: Sequence[Example],
    test: Sequence[Example],
) -> Resolved:
    """Everything resolved, for rows that are already split and within `limit` tokens."""
    training = spec.training
    steps = total_steps(len(train), training)
    longest = max(int(lengths(rows).max()) for rows in (train, test))
    answers = lengths(train) - prompt_lengths(train)
    return Resolved(
        method=spec.method.type,
        learning_rate=training.learning_rate or default_learning_rate(spec.method.type, parameters),
        warmup_steps=warmup_steps(steps),
        total_steps=steps,
        max_sequence_length=limit,
        # A row is never cut, so the longest has to fit whatever was asked for.
        micro_batch_tokens=max(longest, training.micro_batch_tokens or MICRO_BATCH_TOKENS),
        # Room for answers half as long again as nearly all that were learned.
        max_new_tokens=spec.evaluation.generation.max_new_tokens or ceil(1.5 * float(np.percentile(answers, 99))),
        prompt_format=prompt_format,
        parameters=parameters,
    )


def total_steps(rows: int, training: Training) -> int:
    """Optimizer steps: each epoch's last one takes the rows that are left."""
    steps = ceil(rows / training.global_batch_size) * training.epochs
    return min(steps, training.max_steps or steps)


def default_learning_rate(method: MethodType, parameters: int) -> float:
    """The peak where the spec names none."""
    return 1e-3 if parameters < SMALL_MODEL else 2e-4


def warmup_steps(steps: int) -> int:
    """3% of the steps or 10 of them, whichever is more, but at most a tenth."""
    return min(max(ceil(0.03 * steps), 10), floor(0.1 * steps))
