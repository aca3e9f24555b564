"""What killed pods leave in a claim: later pods remove it, and pods that live go on."""

import errno
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_trainer.handover.prepared_place import place_of, used_manifest, work_prefix, write_manifest
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.places import check_output
from finetune_trainer.storage import documents
from finetune_trainer.storage.claims import leftovers
from finetune_trainer.storage.claims.paths import Volume
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.storage.ownership import MANIFEST, delete_leftovers, is_unfinished, published
from tests.unit.finetune_trainer.storage.claims.conftest import OUTPUT, bundle, files, no_link, storage_of

WORK = "team/tickets/.work/0123"
WHOLE = json.dumps({"job": {"namespace": "team", "name": "other", "uid": "other"}}, indent=2).encode()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "WRITING_SECONDS", 0.0)
    monkeypatch.setattr(leftovers, "WRITING_SECONDS", 0.0)
    monkeypatch.setattr(leftovers, "PAUSE_SECONDS", 0.01)
    monkeypatch.setenv(names.POD_UID_VARIABLE, "pod-2")


def killed_while(work: Callable[[], object]) -> None:
    """Runs `work` in a process that is killed by it."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


class Killing(io.BytesIO):
    """Kills its process after the first part."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(1)


@pytest.mark.parametrize("begin", [check_output, lambda job, storage: delete_leftovers(storage, job)])
def test_a_later_pod_deletes_the_half_files_of_killed_pods_and_of_no_other_job(
    volume: Path, storage: JobStorage, monkeypatch: pytest.MonkeyPatch, begin: Callable[..., object]
) -> None:
    for pod in ("pod-1", "pod-2"):
        monkeypatch.setenv(names.POD_UID_VARIABLE, pod)
        killed_while(lambda: storage.send(lambda: Killing(b"weights"), join(OUTPUT, "w")))
    others = volume / "team/tickets/.work/other"
    others.mkdir()
    (others / "partial-pod-3-1").touch()
    (volume / WORK / "checkpoints").mkdir()
    (volume / WORK / "checkpoints" / "partial-1").touch()
    begin(bundle(), storage)
    left = [path.name for path in (volume / WORK).iterdir()]
    assert [name.rpartition("-")[0] for name in left if name != "checkpoints"] == ["partial-pod-2"]
    assert list((volume / WORK / "checkpoints").iterdir())
    assert list(others.iterdir())


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_pod_that_lives_and_loses_its_half_file_writes_it_again(
    volume: Path, storage: JobStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    synced, lost = os.fsync, []

    def lose_once(descriptor: int) -> None:
        synced(descriptor)
        if not lost:
            lost.append(1)
            monkeypatch.setenv(names.POD_UID_VARIABLE, "pod-3")
            delete_leftovers(storage_of(volume), bundle())
            monkeypatch.setenv(names.POD_UID_VARIABLE, "pod-2")
            if number == errno.ESTALE:  # as NFS answers
                raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", lose_once)
    storage.send(lambda: io.BytesIO(b"weights"), join(OUTPUT, "w"))
    assert lost
    assert (volume / "team/tickets/w").read_bytes() == b"weights"


def test_a_copy_by_a_link_is_tried_again_too(
    volume: Path, storage: JobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(join(work_prefix(bundle()), "a"), b"1")
    link, lost = os.link, []

    def lose_once(source: Any, to: Any, **options: Any) -> None:
        link(source, to, **options)
        if not lost:
            lost.append(Path(to).unlink())

    monkeypatch.setattr(os, "link", lose_once)
    storage.copy(join(work_prefix(bundle()), "a"), join(OUTPUT, "a"))
    assert lost
    assert (volume / "team/tickets/a").read_bytes() == b"1"


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_link(errno.EOPNOTSUPP))
        yield


@pytest.mark.usefixtures("without_links")
@pytest.mark.parametrize("content", [b"", b"{", WHOLE[:40], bytes(100), WHOLE[:40] + bytes(60)])
def test_a_manifest_whose_writer_was_killed_is_deleted(volume: Path, storage: JobStorage, content: bytes) -> None:
    place = volume / "team/tickets" / MANIFEST
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    with pytest.raises(TrainerFailure) as caught:
        published(storage, bundle())
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    delete_leftovers(storage, bundle())
    assert files(volume) == {"team", "team/tickets"}
    assert published(storage, bundle()) is None
    assert storage.write_bytes(join(OUTPUT, MANIFEST), WHOLE, if_absent=True)


@pytest.mark.usefixtures("without_links")
@pytest.mark.parametrize("content", [WHOLE, b"{}", b"[1", b"# notes", b'{"models": '])
def test_a_whole_manifest_and_anothers_file_stay(volume: Path, storage: JobStorage, content: bytes) -> None:
    place = volume / "team/tickets" / MANIFEST
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    delete_leftovers(storage, bundle())
    assert place.read_bytes() == content
    with pytest.raises(TrainerFailure) as caught:
        published(storage, bundle())
    assert caught.value.reason is FailureReason.OUTPUT_OCCUPIED


@pytest.mark.usefixtures("without_links")
def test_a_manifest_that_is_finished_at_the_last_moment_is_put_back(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = volume / "team/tickets" / MANIFEST
    place.parent.mkdir(parents=True)
    place.write_bytes(b"{")
    looks: list[bytes] = []

    def finished_after_the_look(content: bytes) -> bool:
        looks.append(content)
        found = is_unfinished(content)
        if len(looks) == 1:
            place.write_bytes(WHOLE)
        return found

    monkeypatch.setattr(leftovers, "WRITING_SECONDS", -1.0)
    leftovers.delete_unfinished(Volume("results", volume), f"team/tickets/{MANIFEST}", WORK, finished_after_the_look)
    assert looks == [b"{", WHOLE]
    assert place.read_bytes() == WHOLE
    assert not (volume / WORK).exists()


@pytest.mark.usefixtures("without_links")
@pytest.mark.parametrize("there", [None, WHOLE])
def test_a_slow_writer_whose_manifest_was_deleted_never_says_that_it_has_published(
    volume: Path, storage: JobStorage, monkeypatch: pytest.MonkeyPatch, there: bytes | None
) -> None:
    """If another job has published meanwhile, its manifest stays. Otherwise the writer writes its own again."""
    place, own, synced, slow, go = volume / "team/tickets" / MANIFEST, b'{\n  "job": 1}', os.fsync, Event(), Event()

    def slow_sync(descriptor: int) -> None:
        if place.exists() and not slow.is_set():
            slow.set()
            assert go.wait(30)
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", slow_sync)
    said: list[bool] = []
    writer = Thread(target=lambda: said.append(storage.write_bytes(join(OUTPUT, MANIFEST), own, if_absent=True)))
    writer.start()
    assert slow.wait(30)
    place.unlink()
    if there:
        place.write_bytes(there)
    go.set()
    writer.join()
    assert (said, place.read_bytes()) == (([False], there) if there else ([True], own))


def test_prepared_data_whose_choice_was_not_finished_is_chosen_again(storage: JobStorage) -> None:
    write_manifest(storage, bundle(), {"files": {}}, datetime.now(UTC))
    used = place_of(bundle(), "used", MANIFEST)
    for half in (b"", b'{"version": '):
        storage.write_bytes(used, half)
        assert used_manifest(storage, bundle())["folder"] == "pod-2"
        assert json.loads(storage.read_bytes(used))["folder"] == "pod-2"
