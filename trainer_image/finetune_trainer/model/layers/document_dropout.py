"""LoRA dropout whose mask depends only on the training seed, the step, the document's place in the step, and the layer.

So a document loses the same inputs however rows are packed, and also when gradient checkpointing computes activations
again. The masks of torch.nn.Dropout depend on the order in which rows are packed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from finetune_api.reasons import FailureReason
from finetune_trainer.model.batches import MicroBatch
from finetune_trainer.pod.failure import TrainerFailure

# Philox (Salmon et al. 2011) with keys: no state, one key for each token, and the same numbers on CPUs and all GPUs.
# The numbers of torch.Generator depend on the GPU's size. PyTorch calls this module experimental, so a test checks
# its numbers.
try:
    from torch.func import _random as keyed
except ImportError:  # PyTorch 2.11. The fallback gives the same numbers and takes seven times as long on a CPU.
    from finetune_trainer.model.layers import philox as keyed  # type: ignore[no-redef]


def drop_by_document(model: nn.Module) -> None:
    """Replaces the dropout of each LoRA layer with a DocumentDropout."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for number, (name, layer) in enumerate(layers):
        for adapter, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                layer.lora_dropout[adapter] = DocumentDropout(dropout.p, number, name)


class DocumentDropout(nn.Dropout):
    """Dropout on the inputs of LoRA layer `number`, shape [..., tokens, features]. In training mode it requires
    `document_masks`. It scales up the kept inputs, as torch.nn.Dropout does."""

    def __init__(self, p: float, number: int, name: str) -> None:
        super().__init__(p)
        self._number, self._name = number, name

    def forward(self, x: Tensor) -> Tensor:
        """Applies the dropout. Raises TrainerFailure SpecInvalid if the inputs are not one row for each token."""
        if not self.training:
            return x
        rows = x.flatten(0, -2)
        assert _masks is not None, "there is no step: use document_masks"
        keys = _masks.keys(len(rows))
        if keys is None:
            raise TrainerFailure(
                FailureReason.SPEC_INVALID,
                f"spec.method.lora.dropout: the inputs of layer {self._name} are not one row for each token, so "
                "dropout cannot be applied there.",
                "Set spec.method.lora.dropout to 0.",
            )
        noise = keyed.uniform(keyed.fold_in(keys, self._number), *rows.shape)
        kept = rows.masked_fill(noise < self.p, 0) / (1 - self.p)
        return kept.view_as(x)


@contextmanager
def document_masks(batch: MicroBatch, seed: int, step: int) -> Iterator[None]:
    """Sets the dropout masks for the forward and backward pass of one micro-batch of step `step`."""
    global _masks
    _masks = _Masks(batch, seed, step)
    try:
        yield
    finally:
        _masks = None


class _Masks:
    """Random keys for the masks of one micro-batch, shape [rows, 1, 2], computed at their first use."""

    def __init__(self, batch: MicroBatch, seed: int, step: int) -> None:
        self._batch, self._seed, self._step = batch, seed, step
        self._keys: dict[int, Tensor] = {}

    def keys(self, rows: int) -> Tensor | None:
        """Returns the keys for `rows` rows: all tokens, or only the label positions, which an output head receives.
        Returns None for another number of rows."""
        if not self._keys:
            step = keyed.fold_in(keyed.key(self._seed), self._step)
            documents = zip(self._batch.places, self._batch.document_lengths, strict=True)
            tokens = torch.cat([keyed.split(keyed.fold_in(step, place), length) for place, length in documents])
            tokens = tokens[:, None].to(self._batch.input_ids.device)
            # Not every device can index uint64.
            labels = tokens.view(torch.int64)[self._batch.label_positions].view(torch.uint64)
            self._keys = {len(labels): labels, len(tokens): tokens}
        return self._keys.get(rows)


_masks: _Masks | None = None
"""Not a ContextVar: on a GPU, gradient checkpointing reads it in autograd's own thread."""
