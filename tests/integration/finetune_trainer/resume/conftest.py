"""A process that starts trainers, and jobs that were prepared once."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.resume.histories import History, Kill, live, prepare, start
from benchmarks.resume.job import SPECS, bundle_of, write_inputs
from benchmarks.resume.serve import Server
from finetune_api.bundle import Bundle

Job = tuple[Bundle, Path]
Live = Callable[..., History]


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    """Starts trainers."""
    with Server() as server:
        yield server


@pytest.fixture(scope="package")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """The bundle of a job, and a folder with its prepared data."""
    folder = tmp_path_factory.mktemp("jobs")
    write_inputs(folder)
    made: dict[str, Job] = {}

    def job(name: str) -> Job:
        if name not in made:
            bundle = bundle_of(folder, SPECS[name])
            made[name] = bundle, prepare(bundle, folder / name)
        return made[name]

    return job


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
