"""What a job writes to the volume of a claim: each file whole or not at all, and nothing else in the volume changes."""

import errno
import io
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.handover.cleanup import cleanup
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.places import check_output
from finetune_trainer.storage.claims.files import ClaimFiles
from finetune_trainer.storage.job_storage import JobStorage, join
from tests.unit.finetune_trainer.storage.claims.conftest import OUTPUT, bundle, files, no_link, storage_of


def test_a_written_file_leaves_nothing_beside_it(volume: Path, storage: JobStorage) -> None:
    storage.write_bytes(join(OUTPUT, "manifest.json"), b"{}", if_absent=True)
    storage.send(lambda: io.BytesIO(b"weights"), join(OUTPUT, "adapter", "w"))
    assert files(volume) == {
        "team",
        "team/tickets",
        "team/tickets/manifest.json",
        "team/tickets/adapter",
        "team/tickets/adapter/w",
    }


@pytest.mark.parametrize("refused", [None, errno.EPERM])
def test_a_copy_needs_no_space_where_the_file_system_has_hard_links(
    volume: Path, storage: JobStorage, monkeypatch: pytest.MonkeyPatch, refused: int | None
) -> None:
    """The results of a job are copied from its work folder, and weights can fill half of a volume."""
    if refused:
        monkeypatch.setattr(os, "link", no_link(refused))
    work = work_prefix(bundle())
    storage.write_bytes(join(work, "results", "p", "a"), b"new")
    storage.write_bytes(join(OUTPUT, "a"), b"old")
    for _ in range(2):  # another pod may copy it too
        storage.copy(join(work, "results", "p", "a"), join(OUTPUT, "a"))
    output = volume / "team" / "tickets"
    assert (output / "a").read_bytes() == b"new"
    assert (output / "a").stat().st_nlink == (1 if refused else 2)
    storage.delete_prefix(work)
    assert files(output) == {"a"}
    with pytest.raises(TrainerFailure):
        storage.copy(join(work, "results", "p", "a"), join(OUTPUT, "a"))
    assert files(output) == {"a"}


@pytest.mark.parametrize("refused", [None, errno.EPERM, errno.EOPNOTSUPP])
def test_of_many_pods_that_publish_at_once_one_wins_and_its_file_is_whole(
    volume: Path, monkeypatch: pytest.MonkeyPatch, refused: int | None
) -> None:
    """Also on file systems without hard links."""
    if refused:
        monkeypatch.setattr(os, "link", no_link(refused))
    start, won = threading.Barrier(8), []

    def publish(number: int) -> None:
        content = str(number).encode() * 10_000
        start.wait()
        if storage_of(volume, f"job-{number}").write_bytes(join(OUTPUT, "manifest.json"), content, if_absent=True):
            won.append(content)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [(volume / "team/tickets/manifest.json").read_bytes()]
    assert files(volume) == {"team", "team/tickets", "team/tickets/manifest.json"}


def test_a_lost_answer_of_a_server_of_nfs_is_no_other_writer(
    volume: Path, storage: JobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client repeats the request, and the server refuses what it has done."""
    link = os.link

    def twice(source: Any, to: Any, **options: Any) -> None:
        link(source, to, **options)
        link(source, to, **options)

    monkeypatch.setattr(os, "link", twice)
    assert storage.write_bytes(join(OUTPUT, "manifest.json"), b"{}", if_absent=True)
    assert not storage.write_bytes(join(OUTPUT, "manifest.json"), b"{}", if_absent=True)


class GivenUp(Exception):  # noqa: N818 - not an error
    """The upload is no longer needed."""


def test_an_upload_that_is_given_up_leaves_nothing(volume: Path, storage: JobStorage) -> None:
    def advance(size: int) -> None:
        raise GivenUp

    with pytest.raises(GivenUp):
        storage.send(lambda: io.BytesIO(b"weights"), join(OUTPUT, "w"), advance)
    assert files(volume) == {"team", "team/tickets"}


def test_what_a_killed_pod_left_goes_with_the_work_folder(volume: Path, storage: JobStorage) -> None:
    job = bundle()
    storage.write_bytes(join(work_prefix(job), "checkpoints", "a", "state"), b"1")
    (volume / "team/tickets/.work/0123/partial-1").write_bytes(b"half")
    storage.write_bytes(join(OUTPUT, "adapter", "w"), b"1")
    assert cleanup(job, storage).startswith("Deleted 2 objects")
    assert files(volume) == {"team", "team/tickets", "team/tickets/adapter", "team/tickets/adapter/w"}
    assert cleanup(job, storage).startswith("Deleted 0 objects")


def test_empty_folders_go_with_the_work_folder(volume: Path, storage: JobStorage) -> None:
    """A killed pod leaves them, and so does a file system that removes no folder while a file in it is open."""
    work = volume / "team/tickets/.work/0123"
    (work / "checkpoints" / "a-1").mkdir(parents=True)
    (work / "prepared").mkdir()
    (work / "prepared" / "gone").symlink_to("../nowhere")
    cleanup(bundle(), storage)
    assert files(volume) == {"team", "team/tickets"}
    cleanup(bundle(), storage)


def test_the_empty_folders_of_another_job_stay(volume: Path, storage: JobStorage) -> None:
    for uid in ("0123", "other"):
        (volume / "team/tickets/.work" / uid / "checkpoints").mkdir(parents=True)
    cleanup(bundle(), storage)
    assert files(volume) == {
        "team",
        "team/tickets",
        *(f"team/tickets/.work{p}" for p in ("", "/other", "/other/checkpoints")),
    }


def test_empty_folders_behind_a_link_stay(volume: Path, storage: JobStorage) -> None:
    (volume / "precious" / "empty").mkdir(parents=True)
    (volume / "team/tickets/.work").mkdir(parents=True)
    (volume / "team/tickets/.work/0123").symlink_to("../../../precious")
    cleanup(bundle(), storage)
    assert files(volume) == {"precious", "precious/empty", "team", "team/tickets"}
    (volume / "team/tickets/.work/0123").mkdir(parents=True)
    (volume / "team/tickets/.work/0123/inner").symlink_to("../../../../precious")
    cleanup(bundle(), storage)
    assert files(volume) == {"precious", "precious/empty", "team", "team/tickets"}


def test_the_folder_of_the_output_stays_with_its_permissions(volume: Path, storage: JobStorage) -> None:
    """A team may have made it for the user of the pods, in a folder where that user can make none."""
    folder = volume / "team" / "tickets"
    folder.mkdir(parents=True)
    folder.chmod(0o2770)
    check_output(bundle(), storage)
    assert files(volume) == {"team", "team/tickets"}
    assert folder.stat().st_mode & 0o7777 == 0o2770


def test_the_results_of_another_job_are_not_overwritten(volume: Path, storage: JobStorage) -> None:
    storage_of(volume, "other").write_bytes(join(OUTPUT, "manifest.json"), b'{"job": {"uid": "other"}}', if_absent=True)
    with pytest.raises(TrainerFailure, match="already contains the results of another job") as caught:
        check_output(bundle(), storage)
    assert caught.value.reason is FailureReason.OUTPUT_OCCUPIED


@pytest.mark.parametrize(
    ("number", "reason", "told"),
    [
        (errno.ENOSPC, FailureReason.DISK_FULL, "The volume of PersistentVolumeClaim results has no space left"),
        (errno.EDQUOT, FailureReason.DISK_FULL, "Free space in the volume, or enlarge the claim"),
        (errno.EROFS, FailureReason.OUTPUT_NOT_WRITABLE, "is read-only"),
        (errno.EACCES, FailureReason.OUTPUT_NOT_WRITABLE, f"does not allow user {os.getuid()}"),
        (errno.EIO, FailureReason.STORAGE_UNAVAILABLE, "Check the storage behind PersistentVolumeClaim results"),
    ],
)
def test_preflight_tells_why_the_output_cannot_be_written(
    storage: JobStorage, monkeypatch: pytest.MonkeyPatch, number: int, reason: FailureReason, told: str
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(TrainerFailure, match=told) as caught:
        check_output(bundle(), storage)
    assert caught.value.reason is reason


def test_a_volume_that_turns_read_only_later_is_a_failure_of_the_platform(
    storage: JobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel does that after an error of the disk. The preflight has written to the volume, and another pod mounts it
    again."""
    check_output(bundle(), storage)
    monkeypatch.setattr(os, "fsync", no_link(errno.EROFS))
    with pytest.raises(TrainerFailure, match="Check the storage behind") as caught:
        storage.send(lambda: io.BytesIO(b"weights"), join(OUTPUT, "w"))
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_a_full_disk_of_the_pod_is_not_taken_for_a_full_volume(storage: JobStorage, tmp_path: Path) -> None:
    storage.write_bytes(join(OUTPUT, "a"), b"1")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "a").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        storage.download_folder(OUTPUT, tmp_path / "to")


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(
    volume: Path, storage: JobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, removed = os.fsync, []

    def remove_once(descriptor: int) -> None:
        if not removed:
            removed.append(shutil.rmtree(volume / "team"))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", remove_once)
    storage.write_bytes(join(OUTPUT, "a"), b"1")
    assert storage.read_bytes(join(OUTPUT, "a")) == b"1"


def test_nothing_is_written_through_a_link_out_of_the_volume(volume: Path, storage: JobStorage, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (volume / "team").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrainerFailure, match="leads out of the volume") as caught:
        check_output(bundle(), storage)
    assert caught.value.reason is FailureReason.OUTPUT_NOT_WRITABLE
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_at_the_place_of_a_file_is_replaced_and_its_target_stays(volume: Path, storage: JobStorage) -> None:
    (volume / "team" / "tickets").mkdir(parents=True)
    (volume / "precious").write_text("kept")
    (volume / "team" / "tickets" / "a").symlink_to(volume / "precious")
    storage.write_bytes(join(OUTPUT, "a"), b"new")
    assert ((volume / "precious").read_text(), storage.read_bytes(join(OUTPUT, "a"))) == ("kept", b"new")
    (volume / "team" / "tickets" / "b").symlink_to(volume / "precious")
    storage.delete_prefix(OUTPUT)
    assert files(volume) == {"precious", "team", "team/tickets"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV])
def test_a_file_system_that_cannot_rename_is_found_before_the_training(
    volume: Path, storage: JobStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As some file systems over an object storage. They have no hard links either."""
    monkeypatch.setattr(os, "link", no_link(number))
    monkeypatch.setattr(os, "replace", no_link(number))
    with pytest.raises(TrainerFailure, match="cannot rename files") as caught:
        check_output(bundle(), storage)
    assert caught.value.reason is FailureReason.OUTPUT_NOT_WRITABLE


def test_a_client_that_the_file_system_has_evicted_is_a_failure_of_the_storage(
    storage: JobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CephFS does after its client did not answer."""
    monkeypatch.setattr(os, "fsync", no_link(errno.ESHUTDOWN))
    with pytest.raises(TrainerFailure, match="Check the storage behind") as caught:
        storage.write_bytes(join(OUTPUT, "a"), b"1")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_a_cleanup_deletes_a_link_and_nothing_that_it_leads_to(volume: Path, storage: JobStorage) -> None:
    """Whoever can write to the folder of the job must not be able to delete other folders through it."""
    storage.write_bytes(join(OUTPUT, "adapter", "w"), b"1")
    storage.write_bytes(join(work_prefix(bundle()), "checkpoints", "a", "state"), b"1")
    (volume / "precious").mkdir()
    (volume / "precious" / "file").write_text("kept")
    work = volume / "team/tickets/.work/0123"
    (work / "elsewhere").symlink_to(volume / "precious")
    (work / "checkpoints" / "results").symlink_to("../../../adapter")
    cleanup(bundle(), storage)
    assert files(volume) == {
        *("precious", "precious/file", "team", "team/tickets", "team/tickets/adapter", "team/tickets/adapter/w")
    }


def test_a_file_beside_the_output_is_deleted_too(volume: Path, storage: JobStorage) -> None:
    for path in ("other", "team/other/deep"):
        storage.write_bytes(f"pvc://results/{path}/file", b"1")
    (volume / "file").write_text("1")
    for folder in ("other", "team/other"):
        storage.delete_prefix(f"pvc://results/{folder}")
    ClaimFiles(bundle(), volume.parent).delete(["pvc://results/file"])
    assert not [path for path in volume.rglob("*") if path.is_file()]
