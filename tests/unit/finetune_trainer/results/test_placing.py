"""Two pods of one job that publish at the same time: one is frozen before a request, and the other one publishes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.status.job import Artifacts
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.results.placing import place
from finetune_trainer.results.publish import publish
from finetune_trainer.storage import documents
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from finetune_trainer.storage.stores import Stores
from tests.unit.finetune_trainer.conftest import MakeBundle

JOB = {"namespace": "team-a", "name": "tickets", "uid": "uid-1"}
FILES = ("adapter/adapter_model.safetensors", "report.html", "samples.jsonl")
REQUESTS = 13
"""Requests of a pod that publishes alone."""


class Killed(Exception):  # noqa: N818 - not an error
    """The node of a pod is gone."""


class Counted(JobStorage):
    """Calls `at` with the number of each request that changes something, before it is sent."""

    def __init__(self, bundle: Bundle, at: Callable[[int], object]) -> None:
        super().__init__(bundle, Stores(bundle, Path("none"), Path("none"), Path("none")))
        self.requests, self.at = 0, at

    def count(self) -> None:
        self.requests += 1
        self.at(self.requests)

    def exists(self, uri: str) -> bool:
        self.count()
        return super().exists(uri)

    def upload_file(self, path: Path, uri: str) -> None:
        self.count()
        super().upload_file(path, uri)

    def copy(self, uri: str, to: str) -> None:
        self.count()
        super().copy(uri, to)

    def write_bytes(self, uri: str, data: bytes, if_absent: bool = False) -> bool:
        self.count()
        return super().write_bytes(uri, data, if_absent)

    def delete_prefix(self, uri: str) -> None:
        self.count()
        super().delete_prefix(uri)


def staged(pod: str, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """The files of a pod, and their manifest. No two pods have the same bytes."""
    described = []
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of {pod}")
        content = path.read_bytes()
        described.append({"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    return [folder / name for name in FILES], {"job": JOB, "by": pod, "files": described}


def publish_as(
    pod: str, storage: JobStorage, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Artifacts:
    files, manifest = staged(pod, tmp_path / pod)
    with monkeypatch.context() as patched:
        patched.setenv("POD_UID", pod)
        placed = place(storage, bundle, files, tmp_path / pod, manifest)
    return publish(storage, bundle, placed)


def by_whom(bundle: Bundle) -> str | None:
    """The pod of whose results everything is, or None if nothing is published."""
    output = Path(bundle.spec.output.uri)
    if not (output / "manifest.json").exists():
        return None
    manifest = json.loads((output / "manifest.json").read_text())
    for file in manifest["files"]:
        assert hashlib.sha256((output / file["path"]).read_bytes()).hexdigest() == file["sha256"], file["path"]
    found: str = manifest["by"]
    return found


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("number", range(1, REQUESTS + 1))
def test_the_results_are_those_of_one_pod_whenever_the_other_one_is_frozen(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, dies: bool
) -> None:
    bundle, seen = make_bundle(job=JOB), list[str | None]()

    def at(request: int) -> None:
        seen.append(by_whom(bundle))
        if request == number:
            fast = publish_as("n", open_storage(bundle), bundle, tmp_path, monkeypatch)
            assert fast.digest == hashlib.sha256(Path(fast.manifest).read_bytes()).hexdigest()
            if dies:
                raise Killed

    try:
        slow = publish_as("z", Counted(bundle, at), bundle, tmp_path, monkeypatch)
        assert slow.digest == hashlib.sha256(Path(slow.manifest).read_bytes()).hexdigest()
    except Killed:
        pass
    assert by_whom(bundle) in ("z", "n")
    assert len({*seen, by_whom(bundle)} - {None}) <= 1, "published results never change"
    assert dies or not Path(work_prefix(bundle)).exists()


class Undeleting(Counted):
    """Dies before it deletes anything."""

    def delete_prefix(self, uri: str) -> None:
        raise Killed


@pytest.mark.parametrize("number", range(1, REQUESTS + 1))
def test_the_results_stay_those_of_a_pod_that_died_before_it_deleted_the_work_folder(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    bundle, seen = make_bundle(job=JOB), list[str | None]()

    def at(request: int) -> None:
        seen.append(by_whom(bundle))
        if request == number:
            with pytest.raises(Killed):
                publish_as("n", Undeleting(bundle, lambda number: None), bundle, tmp_path, monkeypatch)

    publish_as("z", Counted(bundle, at), bundle, tmp_path, monkeypatch)
    assert by_whom(bundle) in ("z", "n")
    assert len({*seen, by_whom(bundle)} - {None}) == 1, "published results never change"


def test_a_pod_that_publishes_alone_sends_so_many_requests(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(job=JOB)
    storage = Counted(bundle, lambda number: None)
    publish_as("z", storage, bundle, tmp_path, monkeypatch)
    assert (storage.requests, by_whom(bundle)) == (REQUESTS, "z")


class Copying(Counted):
    """Dies before it copies anything."""

    def copy(self, uri: str, to: str) -> None:
        raise Killed


HARMS = {
    "all": lambda folder: shutil.rmtree(folder / "z"),
    "the manifest": lambda folder: (folder / "z" / "manifest.json").unlink(),
    "one file": lambda folder: (folder / "z" / FILES[1]).unlink(),
    "half a file": lambda folder: (folder / "z" / FILES[1]).write_text("report"),
    "the end of the choice": lambda folder: (folder / "chosen-1").write_text("z"),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_chosen_results_that_are_not_complete_any_more_do_not_hold_up_the_next_pods(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], object]
) -> None:
    """A lifecycle rule deletes one object after the other."""
    bundle = make_bundle(job=JOB)
    monkeypatch.setattr(documents, "WRITING_SECONDS", 0.0)
    with pytest.raises(Killed):
        publish_as("z", Copying(bundle, lambda number: None), bundle, tmp_path, monkeypatch)
    harm(Path(work_prefix(bundle)) / "results")
    with pytest.raises(Killed):
        publish_as("n", Copying(bundle, lambda number: None), bundle, tmp_path, monkeypatch)
    publish_as("m", open_storage(bundle), bundle, tmp_path, monkeypatch)
    assert by_whom(bundle) == "n", "all pods find the same second choice"


def test_an_error_of_the_storage_is_raised_if_nobody_has_published(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(job=JOB)

    def at(number: int) -> None:
        if number == 2:
            raise TrainerFailure(FailureReason.STORAGE_UNAVAILABLE, "No answer.")

    with pytest.raises(TrainerFailure, match="No answer"):
        publish_as("z", Counted(bundle, at), bundle, tmp_path, monkeypatch)
