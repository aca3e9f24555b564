"""LoRA's dropout, drawn for each document by itself: a pure function of the training seed, the step, the document's
place in the step and the layer. However rows lie in memory, and whenever activations are computed again, a document
loses the same inputs. torch.nn.Dropout draws from one stream instead, in the order in which a step is packed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from finetune_api.reasons import FailureReason
from finetune_trainer.model.batches import MicroBatch
from finetune_trainer.pod.failure import TrainerFailure

# Philox (Salmon et al. 2011) by key: no state, a key for each token, and the same numbers on CPUs and all GPUs, where
# torch.Generator's depend on the GPU's size. PyTorch calls it experimental; a test holds its numbers.
try:
    from torch.func import _random as keyed
except ImportError:  # PyTorch 2.11. The same numbers in plain tensor operations take seven times as long on a CPU.
    from finetune_trainer.model import philox as keyed  # type: ignore[no-redef]


def drop_by_document(model: nn.Module) -> None:
    """Puts a DocumentDropout in the place of each adapter's dropout, where it has one."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for number, (name, layer) in enumerate(layers):
        for adapter, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                layer.lora_dropout[adapter] = DocumentDropout(dropout.p, number, name)


class DocumentDropout(nn.Dropout):
    """What layer `number` drops of its inputs, [..., tokens, features], while training within `document_masks`. The
    rest is scaled up, as torch.nn.Dropout does."""

    def __init__(self, p: float, number: int, name: str) -> None:
        super().__init__(p)
        self._number, self._name = number, name

    def forward(self, x: Tensor) -> Tensor:
        """Raises TrainerFailure SpecInvalid where the layer is given something else than a row for each token."""
        if not self.training:
            return x
        rows = x.flatten(0, -2)
        assert _masks is not None, "there is no step to draw for"
        keys = _masks.keys(len(rows))
        if keys is None:
            finding = (
                f"spec.method.lora.dropout: the layer {self._name} takes its inputs in other rows than the tokens'"
            )
            raise TrainerFailure(FailureReason.SPEC_INVALID, f"{finding}; set it to 0.")
        noise = keyed.uniform(keyed.fold_in(keys, self._number), *rows.shape)
        kept = rows.masked_fill(noise < self.p, 0) / (1 - self.p)
        return kept.view_as(x)


@contextmanager
def document_masks(batch: MicroBatch, seed: int, step: int) -> Iterator[None]:
    """What is computed in here, forward and backward, is of this micro-batch of step `step`."""
    global _masks
    _masks = _Masks(batch, seed, step)
    try:
        yield
    finally:
        _masks = None


class _Masks:
    """The masks of one micro-batch, as keys to draw them with, [rows, 1, 2]. Made when first asked for."""

    def __init__(self, batch: MicroBatch, seed: int, step: int) -> None:
        self._batch, self._seed, self._step = batch, seed, step
        self._keys: dict[int, Tensor] = {}

    def keys(self, rows: int) -> Tensor | None:
        """Those of the tokens, or of the label positions, which are all that an output head is given."""
        if not self._keys:
            step = keyed.fold_in(keyed.key(self._seed), self._step)
            documents = zip(self._batch.places, self._batch.document_lengths, strict=True)
            tokens = torch.cat([keyed.split(keyed.fold_in(step, place), length) for place, length in documents])
            tokens = tokens[:, None].to(self._batch.input_ids.device)
            # uint64 is no type to index everywhere.
            labels = tokens.view(torch.int64)[self._batch.label_positions].view(torch.uint64)
            self._keys = {len(labels): labels, len(tokens): tokens}
        return self._keys.get(rows)


_masks: _Masks | None = None
"""No ContextVar: what a checkpoint computes again on a GPU asks for it from autograd's own thread."""
