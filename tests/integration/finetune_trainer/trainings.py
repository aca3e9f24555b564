"""Runs of the training half on what preflight prepared, and what their logs say of the status."""

import json
from typing import Any

from finetune_api.bundle import Bundle
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.storage.job_storage import open_storage
from finetune_trainer.train.recipe import train
from tests.unit.finetune_trainer.preflight_runs import run as prepare

__all__ = ["applied", "prepare", "run"]


def run(bundle: Bundle) -> tuple[str, StatusWriter]:
    """The verdict of the first attempt, and the status as it left it."""
    writer = StatusWriter(None, "attempt-1")
    return train(bundle, open_storage(bundle), writer, attempt=1), writer


def applied(log: str) -> list[dict[str, Any]]:
    """Every status the log says was applied."""
    lines = (line for line in log.splitlines() if line.startswith("attempt-1: "))
    return [json.loads(line.removeprefix("attempt-1: ")) for line in lines]
