"""Documents that several pods write at once, on a file system without hard links: a reader may find them half."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from finetune_trainer.handover.prepared_place import place_of, used_manifest
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.results.placing import place
from finetune_trainer.storage import documents
from finetune_trainer.storage.claims import writes
from finetune_trainer.storage.documents import read_document
from finetune_trainer.storage.ownership import published
from tests.unit.finetune_trainer.results.test_placing import staged
from tests.unit.finetune_trainer.storage.test_job_storage import JOB, Place, bundle, claim_place

__all__ = ["claim_place"]

Write = Callable[[str, bytes], None]


@pytest.fixture(params=[0, 5], ids=["empty", "half"])
def begin_write(claim_place: Place, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Write]:
    """Begins to write a document as another pod does. It has some of its content, and gets the rest when a reader has
    found it so."""
    begun, go, threads = Event(), Event(), list[Thread]()

    def copy(source: Any, to: Any) -> None:
        to.write(source.read(request.param))
        to.flush()
        begun.set()
        assert go.wait(60)
        shutil.copyfileobj(source, to)

    def pause(seconds: float) -> None:
        go.set()
        threads[0].join()

    def begin(uri: str, data: bytes) -> None:
        threads.append(Thread(target=claim_place.open().write_bytes, args=(uri, data, True)))
        threads[0].start()
        assert begun.wait(60)

    def no_link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(writes, "copyfileobj", copy)
    monkeypatch.setattr(documents, "sleep", pause)
    yield begin
    go.set()
    for thread in threads:
        thread.join()


def test_a_reader_waits_for_the_rest_of_the_manifest_of_the_prepared_data(
    claim_place: Place, begin_write: Write
) -> None:
    """All pods of the first attempt write it."""
    job = bundle(claim_place.folder, job=JOB)
    begin_write(place_of(job, "used", "manifest.json"), json.dumps({"version": 1, "folder": "p"}).encode())
    assert used_manifest(claim_place.storage, job)["folder"] == "p"


def test_a_reader_waits_for_the_rest_of_the_manifest_of_the_results(claim_place: Place, begin_write: Write) -> None:
    job = bundle(claim_place.folder, job=JOB)
    begin_write(claim_place.uri("out", "manifest.json"), json.dumps({"job": JOB}).encode())
    assert published(claim_place.storage, job) == {"job": JOB}


def test_a_choice_that_is_just_being_written_is_followed(
    claim_place: Place, begin_write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, storage = bundle(claim_place.folder, job=JOB), claim_place.storage
    results = claim_place.uri("out", ".work", JOB["uid"], "results")
    files, manifest = staged("first-pod", tmp_path / "first")
    for path in files:
        storage.upload_file(path, f"{results}/first-pod/{path.relative_to(tmp_path / 'first')}")
    storage.write_bytes(f"{results}/first-pod/manifest.json", json.dumps(manifest).encode())
    begin_write(f"{results}/chosen-1", b"first-pod\n")
    files, manifest = staged("second-pod", tmp_path / "second")
    monkeypatch.setenv("POD_UID", "second-pod")
    assert place(storage, job, files, tmp_path / "second", manifest)["by"] == "first-pod"
    assert storage.read_bytes(claim_place.uri("out", "report.html")) == b"report.html of first-pod"


def test_a_document_that_stays_damaged_is_damaged(claim_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "WRITING_SECONDS", 0.3)
    claim_place.storage.write_bytes(claim_place.uri("out", "x"), b'{"a": ')
    with pytest.raises(ValueError, match="Expecting value"):
        read_document(claim_place.storage, claim_place.uri("out", "x"), json.loads)
    with pytest.raises(TrainerFailure, match="There is no file"):
        read_document(claim_place.storage, claim_place.uri("out", "y"), json.loads)
