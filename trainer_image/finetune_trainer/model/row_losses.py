"""The loss of each row, independent of how rows share forward passes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.batches import micro_batches
from finetune_trainer.model.isolation import sharing
from finetune_trainer.model.loss import token_losses
from finetune_trainer.pod.heartbeat import beat
from finetune_trainer.pod.termination import check_stop


def row_losses(
    model: PreTrainedModel, examples: Sequence[Example], micro_batch_tokens: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns each row's summed cross-entropy in nats and its number of labels, both of shape [rows].

    Raises StopRequested between two micro-batches after SIGTERM."""
    losses, labels = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    for batch in micro_batches(examples, micro_batch_tokens, sharing(model).packed, model.device):
        check_stop()
        rows, documents = list(batch.places), batch.label_documents.cpu().numpy()
        losses[rows] = np.bincount(documents, token_losses(model, batch).double().cpu().numpy(), len(rows))
        labels[rows] = np.bincount(documents, minlength=len(rows))
        beat()
    return losses, labels
