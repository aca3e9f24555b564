"""The loss of each row, independent of how rows share forward passes."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.batches import micro_batches
from finetune_trainer.model.isolation import sharing
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.sharding import in_step
from finetune_trainer.pod.liveness.heartbeat import beat
from finetune_trainer.pod.termination import check_stop
from finetune_trainer.ranks.division import divided


def row_losses(
    model: PreTrainedModel, examples: Sequence[Example], micro_batch_tokens: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns each row's summed cross-entropy in nats and its number of labels, both of shape [rows]. Each rank
    computes a share of the rows and gets the results of all.

    Raises StopRequested between two micro-batches after SIGTERM."""
    compute = partial(_losses_and_labels, model, examples, micro_batch_tokens)
    found = divided([len(example.input_ids) for example in examples], compute)
    losses, labels = np.array([loss for loss, _ in found]), np.array([count for _, count in found], dtype=np.int64)
    return losses, labels


def _losses_and_labels(
    model: PreTrainedModel, examples: Sequence[Example], micro_batch_tokens: int, share: Sequence[int]
) -> list[tuple[float, int]]:
    """Returns the loss and the labels of each row in `share`, indices of `examples`."""
    losses, labels = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    batches = micro_batches(examples, micro_batch_tokens, sharing(model).packed, model.device, share)
    with in_step(model):
        for batch in batches:
            check_stop()
            documents, rows = batch.label_documents.cpu().numpy(), list(batch.places)
            losses[rows] = np.bincount(documents, token_losses(model, batch).double().cpu().numpy(), len(rows))
            labels[rows] = np.bincount(documents, minlength=len(rows))
            beat()
    return list(zip(losses[share].tolist(), labels[share].tolist(), strict=True))
