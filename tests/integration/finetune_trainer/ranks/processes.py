"""Runs a function in several processes that meet as the ranks of a training do, and returns what each one returned."""

import multiprocessing
import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from finetune_trainer.pod.rank import Place
from finetune_trainer.ranks.arrivals import ALL_ARRIVED
from finetune_trainer.ranks.group import join, leave

T = TypeVar("T")
SECONDS = 120.0
# The libraries are imported once, in the process from which the ranks are forked.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"tests.integration.finetune_trainer.ranks.{name}" for name in ("courses", "forked")])


def on_ranks(ranks: int, work: Callable[..., T], *arguments: Any, nodes: int = 1) -> list[T]:
    """Calls `work(*arguments)` in `ranks` processes. Returns the results in the order of the ranks. `nodes`: number of
    nodes among which they are divided. Those of different nodes share no folder, and meet over TCP.

    Raises AssertionError with the traceback of a rank that raised an exception."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ranks) as threads:
        store = f"127.0.0.1:{_free_port()}" if nodes > 1 else ""
        places = [_place(rank, ranks, nodes, Path(folder), store) for rank in range(ranks)]
        return list(threads.map(lambda place: _result(place, work, arguments), places))


def _place(rank: int, ranks: int, nodes: int, folder: Path, store: str) -> Place:
    """The place of a rank. With several nodes the launchers have said already that all ranks are ready."""
    node = rank * nodes // ranks
    meeting = folder / str(node)
    meeting.mkdir(exist_ok=True)
    (meeting / ALL_ARRIVED).touch()
    return Place(rank, ranks, meeting, node=node, nodes=nodes, store=store)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _result(place: Place, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    process = CONTEXT.Process(target=_run, args=(place, work, arguments), daemon=True)
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
    answer = place.meeting / f"answer-{place.rank}"
    assert answer.exists(), f"rank {place.rank} ended with exit code {process.exitcode}"
    found, error = pickle.loads(answer.read_bytes())
    assert error is None, f"rank {place.rank}: {error}"
    return found  # type: ignore[no-any-return]


def _run(place: Place, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {**place.environment, "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    found = error = None
    try:
        join(place)
        found = work(*arguments)
        leave()
    except BaseException:
        error = traceback.format_exc()
    (place.meeting / f"answer-{place.rank}").write_bytes(pickle.dumps((found, error)))
