"""A process that starts trainers, and jobs that were prepared once."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.resume.histories import History, Kill, live, prepare, start
from benchmarks.resume.serve import Server
from finetune_api.bundle import Bundle
from tests.unit.finetune_trainer.conftest import save_model, save_tokenizer, sum_rows, write_rows

Job = tuple[Bundle, Path]
Live = Callable[..., History]

SPECS: dict[str, dict[str, Any]] = {
    "lora": {
        "method": {"type": "LoRA", "lora": {"r": 4, "dropout": 0.2}},
        "training": {
            "epochs": 3,
            "learningRate": 0.1,
            "evaluateEvery": 2,
            "publish": "Best",
            "checkpoint": {"every": 2},
        },
    },
    "dora": {
        "method": {"type": "LoRA", "lora": {"r": 4, "dropout": 0.1, "useDora": True, "bias": "LoraOnly"}},
        "training": {"epochs": 2, "learningRate": 0.01, "weightDecay": 0.1, "checkpoint": {"every": 3, "keep": 1}},
    },
    "full": {
        "method": {"type": "Full"},
        "training": {
            "epochs": 2,
            "learningRate": 0.01,
            "publish": "Best",
            "evaluateEvery": 2,
            "checkpoint": {"every": 2},
        },
    },
    "8-bit": {
        "method": {"type": "LoRA", "lora": {"r": 64, "modulesToSave": ["lm_head"]}},
        "training": {"epochs": 2, "optimizer": "PagedAdamW8bit", "learningRate": 0.01, "checkpoint": {"every": 2}},
    },
    "qlora": {
        "method": {"type": "QLoRA", "lora": {"r": 4, "dropout": 0.1}},
        "training": {"epochs": 2, "learningRate": 0.01, "publish": "Last", "checkpoint": {"every": 2}},
    },
    "early": {
        "method": {"type": "LoRA", "lora": {"r": 4}},
        "training": {
            "epochs": 6,
            "learningRate": 0.5,
            "evaluateEvery": 2,
            "earlyStopping": {"patience": 2},
            "checkpoint": {"every": 1},
        },
    },
}

"""The jobs. The validation rows are of another kind than the training rows, so that the loss on them rises again: with
"lora", "8-bit", "full" and "early" the best step is not the last one."""


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    """Starts trainers."""
    with Server() as server:
        yield server


@pytest.fixture(scope="package")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """The bundle of a job, and a folder with its prepared data."""
    folder = tmp_path_factory.mktemp("jobs")
    save_tokenizer(folder / "model")
    save_model(folder / "model", attention_bias=True)
    write_rows(folder / "train.jsonl", sum_rows(60))
    other = [{"prompt": f"Say {i}", "completion": f"It was what the {i} fox jumped over."} for i in range(12)]
    write_rows(folder / "validation.jsonl", other)
    made: dict[str, Job] = {}

    def job(name: str) -> Job:
        if name not in made:
            bundle = bundle_of(folder, SPECS[name])
            made[name] = bundle, prepare(bundle, folder / name)
        return made[name]

    return job


def bundle_of(folder: Path, parts: dict[str, Any]) -> Bundle:
    """The bundle of a job over the files in `folder`, with a short evaluation."""
    spec = {
        "model": {"uri": str(folder / "model")},
        "dataset": {
            "train": [{"uri": str(folder / "train.jsonl")}],
            "validation": [{"uri": str(folder / "validation.jsonl")}],
            "split": {"test": 0.1},
        },
        "output": {"uri": "/set-for-each-history"},
        "evaluation": {"maxRows": 4, "baselines": ["Base"], "generation": {"maxNewTokens": 2}},
    }
    return Bundle.model_validate({"spec": spec | parts, "allowCPU": True})


@pytest.fixture(scope="package")
def uninterrupted(server: Server, jobs: Callable[[str], Job], tmp_path_factory: pytest.TempPathFactory) -> Live:
    """The history of a job that nobody interrupted, by the job's name."""
    made: dict[str, History] = {}

    def run(name: str) -> History:
        if name not in made:
            bundle, prepared = jobs(name)
            folder = tmp_path_factory.mktemp("whole") / name
            made[name] = live(server, bundle, prepared, folder, iter(()))
            assert len(made[name].attempts) == 1
        return made[name]

    return run


@pytest.fixture
def interrupted(server: Server, jobs: Callable[[str], Job], tmp_path: Path) -> Live:
    """The history of a job whose attempts are killed like this; the one after them ends by itself."""

    def run(name: str, *kills: Kill) -> History:
        bundle, prepared = jobs(name)
        return live(server, bundle, prepared, Path(tempfile.mkdtemp(dir=tmp_path)) / name, iter(kills))

    return run


@pytest.fixture
def started(jobs: Callable[[str], Job], tmp_path: Path) -> Callable[[str], Path]:
    """The folder of a new job of this name, of which no attempt has started yet."""
    return lambda name: start(*jobs(name), Path(tempfile.mkdtemp(dir=tmp_path)) / name)
