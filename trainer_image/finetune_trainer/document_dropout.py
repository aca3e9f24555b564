"""LoRA's dropout, drawn for each document by itself: a pure function of the training seed, the step, the document's
place in the step and the layer. However rows lie in memory, and whenever activations are computed again, a document
loses the same inputs. torch.nn.Dropout draws from one stream instead, in the order in which a step is packed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

# Philox (Salmon et al. 2011) by key: no state, a key for each token, and the same numbers on CPUs and all GPUs, where
# torch.Generator's depend on the GPU's size. PyTorch calls it experimental; a test holds its numbers.
from torch.func import _random as keyed

from finetune_api.reasons import FailureReason
from finetune_trainer.batches import MicroBatch
from finetune_trainer.failure import TrainerFailure


@contextmanager
def document_dropout(model: nn.Module, seed: int, step: int) -> Iterator[Callable[[MicroBatch], None]]:
    """The adapters in `model` drop by document while in here. Yields what has to be told of each micro-batch before its
    forward pass, and holds until its backward pass is through."""
    dropouts: dict[str, Any] = {
        name: dropout
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        for dropout in module.lora_dropout.values()
        if isinstance(dropout, nn.Dropout)
    }
    masks = _Masks(seed, step)
    for number, (name, dropout) in enumerate(dropouts.items()):
        dropout.forward = partial(masks.drop, dropout, number, name)
    try:
        yield masks.enter if dropouts else lambda batch: None
    finally:
        for dropout in dropouts.values():
            del dropout.forward  # the class's own shows again


class _Masks:
    """The masks of one step. What a checkpoint computes again on a GPU asks for them from autograd's own thread."""

    def __init__(self, seed: int, step: int) -> None:
        self._step = keyed.fold_in(keyed.key(seed), step)
        self._keys: dict[int, Tensor] = {}
        """Keys of the micro-batch's tokens, [rows, 1, 2], by the number of rows that a layer is given."""

    def enter(self, batch: MicroBatch) -> None:
        documents = [keyed.fold_in(self._step, place) for place in batch.places]
        tokens = [keyed.split(key, length) for key, length in zip(documents, batch.document_lengths, strict=True)]
        keys = torch.cat(tokens)[:, None].to(batch.input_ids.device)
        # An adapter on the output head sees the label positions only. uint64 is no type to index everywhere.
        of_labels = keys.view(torch.int64)[batch.label_positions].view(torch.uint64)
        self._keys = {len(of_labels): of_labels, len(keys): keys}

    def drop(self, dropout: nn.Dropout, number: int, name: str, x: Tensor) -> Tensor:
        """`x` [..., rows, features] with its share of dropped inputs, scaled up as torch.nn.Dropout does."""
        if not dropout.training:
            return x
        rows = x.flatten(0, -2)
        if len(rows) not in self._keys:
            finding = f"spec.method.lora.dropout: the layer {name} takes its inputs in other rows than the tokens'"
            raise TrainerFailure(FailureReason.SPEC_INVALID, f"{finding}; set it to 0.")
        noise = keyed.uniform(keyed.fold_in(self._keys[len(rows)], number), *rows.shape)
        kept = rows.masked_fill(noise < dropout.p, 0) / (1 - dropout.p)
        return kept.view_as(x)
