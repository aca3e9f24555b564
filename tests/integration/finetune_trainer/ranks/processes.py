"""Runs a function in several processes that meet as the ranks of a training do, and returns what each one returned."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from finetune_trainer.pod.rank import Place
from finetune_trainer.ranks.group import join, leave

T = TypeVar("T")
SECONDS = 120.0
# The libraries are imported once, in the process from which the ranks are forked.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.integration.finetune_trainer.ranks.courses"])


def on_ranks(ranks: int, work: Callable[..., T], *arguments: Any) -> list[T]:
    """Calls `work(*arguments)` in `ranks` processes. Returns the results in the order of the ranks.

    Raises AssertionError with the traceback of a rank that raised an exception."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ranks) as threads:
        places = [Place(rank, ranks, Path(folder)) for rank in range(ranks)]
        return list(threads.map(lambda place: _result(place, work, arguments), places))


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
