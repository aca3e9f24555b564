"""Chooses the rows of each step, and packs them into micro-batches. The choice does not depend on the packing."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from finetune_trainer.handover.mixing import Mixture, rows_of_epoch
from finetune_trainer.handover.prepared import Example


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Returns the optimizer steps of one epoch. The last step has the remaining rows, so that no row is left out."""
    return ceil(rows / global_batch_size)


def rows_of_step(mixture: Mixture, global_batch_size: int, seed: int, step: int) -> list[int]:
    """Returns the indices of the rows of optimizer step `step`, counted from 0. It is a pure function, so that a
    resumed run, or a run on other hardware, takes the same steps."""
    epoch, position = divmod(step, steps_per_epoch(mixture.rows, global_batch_size))
    start = position * global_batch_size
    return list(rows_of_epoch(mixture, seed, epoch)[start : start + global_batch_size])


def pack(lengths: Sequence[int], limit: int, longest: float) -> list[list[int]]:
    """Packs items into bins of at most `limit` by first-fit decreasing. Returns the indices of the items of each bin.

    An item longer than `limit` or `longest` gets its own bin. The number of bins is at most 11/9 of the minimum plus
    one (Johnson 1973)."""
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
    """The documents of one forward pass, end to end in one sequence."""

    input_ids: Tensor
    """Shape [1, tokens]."""
    position_ids: Tensor
    """Shape [1, tokens]; restarts at 0 in each document."""
    document_lengths: tuple[int, ...]
    """Tokens of each document, in order."""
    places: tuple[int, ...]
    """Index of each document among the rows of its step. Random numbers of a document depend on this index, and not on
    the micro-batch."""
    label_positions: Tensor
    """Positions whose next token is learned, shape [labels]. Logits are computed only at these positions."""
    labels: Tensor
    """The learned tokens, shape [labels]."""
    label_documents: Tensor
    """The document of each label, as an index into `document_lengths`, shape [labels]."""


def micro_batch(examples: Sequence[Example], device: torch.device, places: Sequence[int] | None = None) -> MicroBatch:
    """Concatenates examples to one micro-batch. The first token of a document has no token before it that could predict
    it, so it is never a label. `places`: index of each example in its step; None if these are all rows in order."""
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


def micro_batches(
    examples: Sequence[Example],
    limit: int,
    longest: float,
    device: torch.device,
    share: Sequence[int] | None = None,
) -> list[MicroBatch]:
    """Packs `examples` into micro-batches of at most `limit` tokens. A row longer than `limit` or `longest` gets its
    own micro-batch. `longest`: Sharing.packed of the model, in tokens. `share`: indices of the examples to pack; None
    for all."""
    taken = range(len(examples)) if share is None else share
    bins = pack([len(examples[row].input_ids) for row in taken], limit, longest)
    packed = ([taken[item] for item in items] for items in bins)
    return [micro_batch([examples[row] for row in rows], device, rows) for rows in packed]


def label_count(examples: Sequence[Example]) -> int:
    """Returns the number of labels of the examples, as `micro_batch` counts them."""
    return sum(int(example.supervised[1:].sum()) for example in examples)
