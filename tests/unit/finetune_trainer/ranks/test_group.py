"""An error of the GPU in a message between ranks is told as one of the GPU."""

import pytest
import torch
from torch.distributed import DistBackendError

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import failure_of
from finetune_trainer.ranks.group import finish

NO_MEMORY = DistBackendError(
    "NCCL error in: x.hpp:1, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"
)
BROKEN = DistBackendError("NCCL error in: x.hpp:1, unhandled cuda error\nLast error:\nCuda failure 999 'unknown error'")


class Failing:
    """An operation of torch.distributed that ends with an error."""

    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def is_completed(self) -> bool:
        return True

    def wait(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), FailureReason.GPU_OUT_OF_MEMORY),
        (NO_MEMORY, FailureReason.GPU_OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), FailureReason.GPU_FAULT),
        (BROKEN, FailureReason.GPU_FAULT),
        (RuntimeError("Connection closed by peer"), FailureReason.PEER_LOST),
        (DistBackendError("NCCL error in: x.hpp:1, remote process exited"), FailureReason.PEER_LOST),
    ],
    ids=["torch's memory", "NCCL's memory", "fault", "NCCL's fault", "gloo's peer", "NCCL's peer"],
)
def test_only_a_broken_connection_is_a_lost_peer(error: RuntimeError, reason: FailureReason) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the reason is checked
        finish(lambda: Failing(error))
    assert failure_of(caught.value).reason is reason
