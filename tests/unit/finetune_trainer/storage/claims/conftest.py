"""A volume of a claim, and the storage of a job whose results lie in it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_trainer.storage.job_storage import JobStorage, open_storage

OUTPUT = "pvc://results/team/tickets"


def bundle(uid: str = "0123") -> Bundle:
    return Bundle.model_validate(
        {
            "job": {"namespace": "team", "name": "tickets", "uid": uid},
            "spec": {
                "model": {"uri": "pvc://models/llama"},
                "dataset": {"train": [{"uri": "s3://data/rows.jsonl"}]},
                "output": {"uri": OUTPUT},
            },
            "claims": {"allowed": ["*"]},
        }
    )


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    for name in ("results", "models"):
        (tmp_path / "volumes" / name).mkdir(parents=True)
    return tmp_path / "volumes" / "results"


@pytest.fixture
def storage(volume: Path) -> JobStorage:
    return storage_of(volume)


def storage_of(volume: Path, uid: str = "0123") -> JobStorage:
    return open_storage(bundle(uid), claims_dir=volume.parent)


def files(volume: Path) -> set[str]:
    return {str(path.relative_to(volume)) for path in volume.rglob("*")}


def no_link(number: int) -> Callable[..., None]:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return link
