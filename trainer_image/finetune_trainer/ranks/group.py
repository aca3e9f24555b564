"""What the ranks of a training tell each other. With one process nothing is sent, and torch.distributed is not used.

Messages are sent by gloo, which notices at once that another process has ended. Only gradients on GPUs are sent by
NCCL. All ranks have to call the functions of this module in the same order."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from time import monotonic, sleep
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import StopRequested, TrainerFailure, failure_of
from finetune_trainer.pod.liveness.heartbeat import beat
from finetune_trainer.pod.rank import Place, place
from finetune_trainer.pod.termination import stop_requested
from finetune_trainer.ranks.arrivals import arrival, awaited_arrivals
from finetune_trainer.ranks.peers import peer_lost

T = TypeVar("T")
FOREVER = timedelta(days=30)
"""Time limit of torch.distributed. A rank may wait for hours, for example while rank 0 downloads the model. The
watchdog of each process and the launcher end a training in which one rank does not go on."""
AGREEMENT_SECONDS = 10.0
"""How long a rank that received SIGTERM waits for the others, before it stops alone."""
ARRIVAL_SECONDS = 0.05
"""Seconds between two looks whether the other ranks have arrived."""
OF_THE_GPU = {FailureReason.GPU_OUT_OF_MEMORY, FailureReason.GPU_FAULT}
"""Reasons of an error in a message that are no loss of a connection."""
LETTER_BYTES = 1024
"""Size of a message. What does not fit into it is sent in a second one."""
SHORTEST_PAUSE, LONGEST_PAUSE = 5e-5, 2e-3
"""Seconds between two looks at a message that is under way."""


def join(here: Place) -> None:
    """Meets the other ranks. Returns when all are there. Raises what `finish` raises if one of them is gone again."""
    if here.ranks == 1:
        return
    # init_process_group would wait too, but without handling signals.
    (here.meeting / arrival(here.rank)).touch()
    awaited = [here.meeting / name for name in awaited_arrivals(here)]
    while not all(path.exists() for path in awaited):
        sleep(ARRIVAL_SECONDS)
        beat()
    store = f"tcp://{here.store}" if here.store else f"file://{here.meeting.absolute()}/store"
    try:
        dist.init_process_group("gloo", init_method=store, rank=here.rank, world_size=here.ranks, timeout=FOREVER)
    except RuntimeError as error:
        raise peer_lost(error) from error


def leave() -> None:
    """Closes the connections to the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """Returns the values of all ranks in the order of the ranks. A value has to be one that pickle can write."""
    if place().ranks == 1:
        return [value]
    content = pickle.dumps(value)
    heads = _gather_bytes(len(content).to_bytes(8, "big") + content[: LETTER_BYTES - 8], LETTER_BYTES)
    sizes = [int.from_bytes(head[:8], "big") for head in heads]
    parts = [head[8 : 8 + size] for head, size in zip(heads, sizes, strict=True)]
    rest = max(sizes) - (LETTER_BYTES - 8)
    if rest > 0:
        tails = _gather_bytes(content[LETTER_BYTES - 8 :], rest)
        parts = [(part + tail)[:size] for part, tail, size in zip(parts, tails, sizes, strict=True)]
    return [pickle.loads(part) for part in parts]


def _gather_bytes(content: bytes, size: int) -> list[bytes]:
    """Returns the bytes of all ranks, each filled up to `size` bytes."""
    mine = torch.frombuffer(bytearray(content.ljust(size, b"\0")), dtype=torch.uint8)
    every = [torch.empty_like(mine) for _ in range(place().ranks)]
    finish(lambda: dist.all_gather(every, mine, async_op=True))
    return [each.numpy().tobytes() for each in every]


class AgreedOutOfMemoryError(torch.OutOfMemoryError):
    """Raised on every rank, because the memory of one GPU was too small."""

    agreed = True


@dataclass(frozen=True)
class _Outcome:
    """How the work of one rank ended."""

    value: Any = None
    stopped: bool = False
    out_of_memory: str | None = None
    """The error of the GPU, if its memory was too small."""


def together(work: Callable[[], T]) -> list[T]:
    """Calls `work` on every rank and returns the results of all ranks in the order of the ranks.

    If one rank was stopped by SIGTERM, StopRequested is raised on every rank. If one GPU ran out of memory,
    AgreedOutOfMemoryError is raised on every rank. Any other exception ends its process, and so the training."""
    if place().ranks == 1:
        return [work()]
    return _results(gather(_outcome(work)))


def agreed(work: Callable[[], T]) -> T:
    """Calls `work` on every rank and returns the result of this rank, when all ranks have one. Raises what `together`
    raises."""
    if place().ranks == 1:
        return work()
    found: list[T] = []
    together(lambda: found.append(work()))
    return found[0]


def on_first(work: Callable[[], T]) -> T:
    """Calls `work` on rank 0, and returns its result on every rank. An exception ends rank 0, and so the training."""
    return gather(work() if place().rank == 0 else None)[0]  # type: ignore[return-value] # the result of rank 0


def on_each_node(work: Callable[[], T]) -> T:
    """Calls `work` on the first rank of each node, for files that the ranks of a pod share. Returns its result on every
    rank of that node, when all nodes have one. An exception ends its process, and so the training."""
    here = place()
    results = gather(work() if here.rank_of_node == 0 else None)
    return results[here.rank - here.rank_of_node]  # type: ignore[return-value] # the result of the first one


def slowest_node(work: Callable[[], float]) -> float:
    """Calls `work` as `on_each_node` does, and returns the largest of the seconds that the nodes report. Each rank has
    waited for the slowest node."""
    return max(gather(on_each_node(work)))


def found_on_each_node(find: Callable[[], T | None], name_of: Callable[[T], str]) -> T | None:
    """Returns what `find` has downloaded on each node, or None, as `on_each_node` does. `name_of`: what tells one
    finding from another.

    Raises TrainerFailure StorageUnavailable if not all nodes have found the same: their ranks would do different
    work."""
    found = on_each_node(find)
    names = set(gather(name_of(found) if found else None)) if place().nodes > 1 else set()
    if len(names) > 1:
        seen = ", ".join(sorted(name or "nothing" for name in names))
        finding = f"The nodes of the training have read different files from the storage: {seen}."
        raise TrainerFailure(FailureReason.STORAGE_UNAVAILABLE, finding)
    return found


def _outcome(work: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(work())
    except StopRequested:
        return _Outcome(stopped=True)
    except RuntimeError as error:
        failure = failure_of(error)
        if failure.reason is not FailureReason.GPU_OUT_OF_MEMORY:
            raise
        return _Outcome(out_of_memory=failure.finding)


def _results(outcomes: list[_Outcome]) -> list[Any]:
    if any(outcome.stopped for outcome in outcomes):
        raise StopRequested
    if short := next((outcome.out_of_memory for outcome in outcomes if outcome.out_of_memory), None):
        raise AgreedOutOfMemoryError(short)
    return [outcome.value for outcome in outcomes]


def finish(start: Callable[[], Any], waiting: Callable[[], None] = beat) -> None:
    """Starts an operation of torch.distributed and waits until all ranks have taken part in it. `waiting`: is called
    again and again meanwhile.

    Waiting for a rank that works is no stall: the watchdog of that rank watches over its work. Raises StopRequested if
    the others do not take part soon after SIGTERM, and TrainerFailure PeerLost if one of them is gone. An error of this
    rank's GPU is raised as it is."""
    pause, stopped = SHORTEST_PAUSE, None
    try:
        work = start()
        while not work.is_completed():
            sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            waiting()
            if stop_requested():
                stopped = stopped or monotonic()
                if monotonic() - stopped > AGREEMENT_SECONDS:
                    raise StopRequested
        work.wait()
    except RuntimeError as error:
        if failure_of(error).reason in OF_THE_GPU:
            raise
        raise peer_lost(error) from error


def sum_over_ranks(tensor: Tensor) -> None:
    """Replaces the values of `tensor` on every rank by their sum over all ranks. All ranks have to begin it at about
    the same time. Raises what `finish` raises.

    No rank works on something else meanwhile. So it beats once, and the watchdogs notice a sum that does not end."""
    if place().ranks > 1:
        beat()
        group = between_gpus() if tensor.is_cuda else None
        finish(lambda: dist.all_reduce(tensor, dist.ReduceOp.SUM, group, async_op=True), waiting=lambda: None)


@lru_cache(maxsize=1)
def between_gpus() -> dist.ProcessGroup:
    """Returns the connections between the GPUs. They are made when they are needed: a rank that finds no GPU has to
    tell the others first. They need memory of the GPU."""
    return new_connections("nccl")


def new_connections(backend: str) -> dist.ProcessGroup:
    """Makes connections between all ranks over `backend`, which is gloo or nccl. All ranks have to call it."""
    group = dist.new_group(backend=backend, timeout=FOREVER)
    assert isinstance(group, dist.ProcessGroup)  # every rank is a member
    return group
