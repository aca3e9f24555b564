"""Cross-entropy of the learned tokens. Logits are computed only at the positions of labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_trainer.model.batches import MicroBatch
from finetune_trainer.model.layers.attention import packed

CHUNK = {"cpu": 2**23}
"""Most logits in memory at a time, by device type. On a CPU they are few enough that the C library reuses the same
memory."""
CHUNK_ON_GPUS = 2**26
_bare: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""For each output head, whether the model returns the head's output unchanged as logits."""


def token_losses(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Returns the cross-entropy of each label in nats, in fp32 or wider, shape [labels]."""
    head = frozen_head(model)
    if head is None:
        logits = _forward(model, batch)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(wide), batch.labels, reduction="none")
    with _in_place_of(head, lambda hidden: hidden):
        hidden = _forward(model, batch).to(head.weight.dtype)
    losses: Tensor = _HeadLoss.apply(hidden, head.weight, head.bias, batch.labels)
    return losses


def _forward(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Returns the model's logits at the label positions, shape [labels, vocabulary].

    It passes no attention mask and no cache. With one of them, Transformers would not treat restarting position_ids as
    document boundaries."""
    with packed(batch.document_lengths):
        output = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            document_lengths=batch.document_lengths,
            logits_to_keep=batch.label_positions,
            use_cache=False,
        )
    logits: Tensor = output.logits[0]
    return logits


def frozen_head(model: nn.Module) -> nn.Linear | None:
    """Returns the output head if it is frozen and its output is the logits, without later scaling or capping. Otherwise
    returns None. Such a head can be applied outside the model, to a chunk of labels at a time."""
    whole: PreTrainedModel = getattr(model, "module", model)  # DistributedDataParallel passes nothing on
    head = whole.get_output_embeddings()
    if type(head) is not nn.Linear or any(parameter.requires_grad for parameter in head.parameters()):
        return None
    if head not in _bare:
        _bare[head] = _ends_with(model, head)
    return head if _bare[head] else None


@torch.no_grad()
def _ends_with(model: nn.Module, head: nn.Linear) -> bool:
    """Returns whether the model returns test values unchanged that replace the head's output."""
    device = head.weight.device
    planted = torch.linspace(-50, 50, head.out_features, device=device).to(head.weight.dtype)[None, None]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=device)
    training = model.training
    model.eval()  # dropout needs the tokens of a step
    with _in_place_of(head, lambda hidden: planted.expand(*hidden.shape[:-1], -1).clone()):
        logits = model(input_ids=tokens, use_cache=False).logits
    model.train(training)
    return torch.equal(logits, planted.expand_as(logits).to(logits.dtype))


@contextmanager
def _in_place_of(module: nn.Module, forward: Any) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # restores the method of the class


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of a linear head, with its gradient computed in the forward pass, as in Liger's fused linear
    cross-entropy (Hsu et al. 2024). Logits and their fp32 copies exist only for one chunk of labels at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(1, CHUNK.get(hidden.device.type, CHUNK_ON_GPUS) // len(weight))
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            label = labels[chunk, None]
            logits = F.linear(hidden[chunk], weight, bias)
            scores = torch.log_softmax(logits.to(wide), dim=-1)
            losses[chunk] = -scores.gather(1, label)[:, 0]
            if gradient is not None:
                scores.exp_().scatter_add_(1, label, torch.full_like(label, -1, dtype=wide))
                torch.mm(scores.to(hidden.dtype), weight, out=gradient[chunk])
        ctx.gradient = gradient
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, None]:
        return ctx.gradient * outer[0][:, None].to(ctx.gradient.dtype), None, None, None
