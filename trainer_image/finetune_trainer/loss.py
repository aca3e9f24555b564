"""Cross-entropy of the supervised tokens, computed where there are labels and nowhere else."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from finetune_trainer.batches import MicroBatch


def token_losses(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Cross-entropy of each label in nats, fp32 or better, shape [labels].

    No attention mask and no cache: with either, Transformers no longer takes restarting position_ids for document
    boundaries."""
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        document_lengths=batch.document_lengths,
        logits_to_keep=batch.label_positions,
        use_cache=False,
    )
    logits = output.logits[0]
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.labels, reduction="none")
