"""Which rows make up a step, and how they lie in memory. The first never depends on the second."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from finetune_trainer.handover.mixing import Mixture, rows_of_epoch
from finetune_trainer.handover.prepared import Example


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Optimizer steps of one pass; the last takes the rows that are left, so that none is lost."""
    return ceil(rows / global_batch_size)


def rows_of_step(mixture: Mixture, global_batch_size: int, seed: int, step: int) -> list[int]:
    """Indices of the rows of optimizer step `step`, counted from 0: a pure function, so that a resumed run, or one on
    other hardware, takes the same steps."""
    epoch, position = divmod(step, steps_per_epoch(mixture.rows, global_batch_size))
    start = position * global_batch_size
    return list(rows_of_epoch(mixture, seed, epoch)[start : start + global_batch_size])


def pack(lengths: Sequence[int], limit: int, longest: float) -> list[list[int]]:
    """Spreads items over bins of at most `limit`, one longer than that, or than `longest`, alone in its own: first-fit
    decreasing, which needs at most 11/9 of the fewest possible bins plus one (Johnson 1973)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        alone = lengths[item] > longest
        fitting = None if alone else next((i for i, free in enumerate(room) if free >= lengths[item]), None)
        if fitting is None:
            bins.append([item])
            room.append(0 if alone else limit - lengths[item])
        else:
            bins[fitting].append(item)
            room[fitting] -= lengths[item]
    return bins


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Documents end to end, as one forward pass takes them."""

    input_ids: Tensor
    """[1, tokens]"""
    position_ids: Tensor
    """[1, tokens], from 0 in each document."""
    document_lengths: tuple[int, ...]
    """Tokens of each document, in order."""
    places: tuple[int, ...]
    """Of each document among the rows of its step: what is random about it hangs on that, not on this micro-batch."""
    label_positions: Tensor
    """[labels]: the positions whose next token is learned. Logits are computed there only."""
    labels: Tensor
    """[labels]: that next token."""
    label_documents: Tensor
    """[labels]: the document each label belongs to, as an index into `document_lengths`."""


def micro_batch(examples: Sequence[Example], device: torch.device, places: Sequence[int] | None = None) -> MicroBatch:
    """Lays examples end to end. A document's first token has none before it to be told from, so it is never a label.
    `places`: of each example in its step, where these are not all of it in order."""
    lengths = [len(example.input_ids) for example in examples]
    input_ids = np.concatenate([example.input_ids for example in examples]).astype(np.int64)
    supervised = np.concatenate([example.supervised for example in examples])
    starts = np.cumsum([0, *lengths[:-1]])
    supervised[starts] = False
    label_positions = np.flatnonzero(supervised) - 1
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids)[None].to(device),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(device),
        document_lengths=tuple(lengths),
        places=tuple(range(len(examples)) if places is None else places),
        label_positions=torch.from_numpy(label_positions).to(device),
        labels=torch.from_numpy(input_ids[label_positions + 1]).to(device),
        label_documents=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)[label_positions]).to(device),
    )


def micro_batches(examples: Sequence[Example], limit: int, longest: float, device: torch.device) -> list[MicroBatch]:
    """`examples` as micro-batches of at most `limit` tokens each, a longer row alone in its own, and so one of more
    than `longest` tokens, Sharing.packed of the model they are for."""
    bins = pack([len(example.input_ids) for example in examples], limit, longest)
    return [micro_batch([examples[row] for row in rows], device, rows) for rows in bins]
