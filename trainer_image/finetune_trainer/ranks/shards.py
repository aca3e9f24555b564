"""A model whose weights are sharded over the ranks: its shards, and how the ranks call it together.

`finetune_trainer.model.parameters.sharding` shards a model. Each forward pass of such a model gathers weights from all
ranks. So all ranks have to call it equally often, and a rank that has nothing left to compute repeats a pass for the
others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from itertools import count
from typing import TypeVar

import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import StopRequested, failure_of
from finetune_trainer.pod.liveness.heartbeat import beat
from finetune_trainer.pod.termination import check_stop, stop_requested
from finetune_trainer.ranks.group import between_gpus, gather, new_connections
from finetune_trainer.ranks.peers import peer_lost

T = TypeVar("T")
CONNECTION = ("gloo", "NCCL")
"""Words in an error of torch.distributed that is about a connection."""


@lru_cache(maxsize=1)
def mesh(device_type: str) -> DeviceMesh:
    """Returns the connections over which the ranks send each other the shards of a model. They are not those of
    `group`: after SIGTERM a rank may wait here while another one already sends a message."""
    group = between_gpus() if device_type == "cuda" else new_connections("gloo")
    return DeviceMesh.from_group(group, device_type)


def is_sharded(model: nn.Module) -> bool:
    """Returns whether the weights of `model` are sharded over the ranks. An adapter on them is not sharded."""
    return isinstance(model.get_base_model() if isinstance(model, PeftModel) else model, FSDPModule)


def trains_shards(model: nn.Module) -> bool:
    """Returns whether trained weights of `model` are sharded over the ranks."""
    return any(parameter.requires_grad and is_shard(parameter) for parameter in model.parameters())


def release(model: nn.Module) -> None:
    """Frees the memory of the model's weights. The model cannot be used any more."""
    for tensor in (*model.parameters(), *model.buffers()):
        storage = own_shard(tensor).untyped_storage()
        if storage.resizable():  # a file that is mapped into memory is not
            storage.resize_(0)


def is_shard(tensor: Tensor) -> bool:
    """Returns whether each rank has another shard of the tensor."""
    return isinstance(tensor, DTensor)


def own_shard(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of the tensor, or the tensor itself if it is not sharded. They share their memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns the whole tensor on every rank, or the tensor itself if it is not sharded. All ranks have to call it.
    Raises what `connected` raises."""
    if not isinstance(tensor, DTensor):
        return tensor
    beat()
    with connected():
        full: Tensor = tensor.full_tensor()
        return full


def send(tensors: Iterable[Tensor]) -> None:
    """Sends this rank's shards of the tensors to a rank that calls `whole` with each of them."""
    for tensor in tensors:
        whole(tensor)


def fill(tensor: Tensor, values: Tensor) -> None:
    """Gives the tensor these values, or this rank's shard of them if the tensor is sharded. `values`: of the whole
    tensor."""
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
    own_shard(tensor).copy_(values)


def lockstep(model: nn.Module, work: Sequence[T], filler: Callable[[], T]) -> Iterator[tuple[T, bool]]:
    """Yields each piece of `work` with True. If `model` is sharded, it also yields a piece with False for each pass
    that another rank has more: the result of that pass must not count. `filler`: makes such a piece for a rank without
    work.

    Raises StopRequested between two pieces after SIGTERM; if `model` is sharded, at the same piece on every rank."""
    if not is_sharded(model):
        for piece in work:
            check_stop()
            yield piece, True
        return
    for number in count():
        said = gather((number < len(work), stop_requested()))
        if any(stops for _, stops in said):
            raise StopRequested
        if not any(more for more, _ in said):
            return
        yield (work[min(number, len(work) - 1)] if work else filler()), number < len(work)


@contextmanager
def with_peers(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes. If it is sharded, raises what `connected` raises."""
    with connected() if is_sharded(model) else nullcontext():
        yield


@contextmanager
def connected() -> Iterator[None]:
    """Inside, shards are sent. Raises what `peer_lost` returns if a connection to another rank breaks.

    A GPU that is out of memory raises TrainerFailure GPUOutOfMemory, which ends this process: the other ranks wait for
    its shard of the weights, so they cannot agree to try again. The launcher tells them."""
    try:
        yield
    except RuntimeError as error:
        failure = failure_of(error)
        if failure.reason is not FailureReason.TRAINER_CRASHED:
            raise failure from error
        if isinstance(error, dist.DistError) or any(word in str(error) for word in CONNECTION):
            raise peer_lost(error) from error
        raise
