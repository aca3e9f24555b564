"""Cross-entropy of the supervised tokens, computed where there are labels and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_trainer.model.attention import packed
from finetune_trainer.model.batches import MicroBatch

CHUNK = {"cpu": 2**23}
"""Logits held at a time, by kind of device; on a CPU few enough that the C library hands the same memory out again."""
CHUNK_ON_GPUS = 2**26
_bare: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model's logits are what its output head returns, by head: found out once."""


def token_losses(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Cross-entropy of each label in nats, fp32 or better, shape [labels]."""
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
    """What the model makes of the label positions, shape [labels, vocabulary].

    No attention mask and no cache: with either, Transformers no longer takes restarting position_ids for document
    boundaries."""
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
    """The output head, where it is frozen with its bias and what it returns is the logits: nothing scales or caps them
    after. Then the head can be applied outside of the model, a chunk of labels at a time."""
    whole: PreTrainedModel = getattr(model, "module", model)  # DistributedDataParallel passes nothing on
    head = whole.get_output_embeddings()
    if type(head) is not nn.Linear or any(parameter.requires_grad for parameter in head.parameters()):
        return None
    if head not in _bare:
        _bare[head] = _ends_with(model, head)
    return head if _bare[head] else None


@torch.no_grad()
def _ends_with(model: nn.Module, head: nn.Linear) -> bool:
    """Whether logits planted in place of the head's own come out of the model as they are."""
    device = head.weight.device
    planted = torch.linspace(-50, 50, head.out_features, device=device).to(head.weight.dtype)[None, None]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=device)
    training = model.training
    model.eval()  # these are no tokens of the step: there is nothing to drop
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
        del module.forward  # the class's own shows again


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of a linear head, whose gradient is taken in the forward pass, while the logits are there: neither
    they nor their fp32 copies outlive a chunk. As Liger's fused linear cross-entropy (Hsu et al. 2024) does."""

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
