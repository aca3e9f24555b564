"""The cache of models in a volume that several pods use at once."""

import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.base.cache import model_cache
from finetune_trainer.base.cache.model_cache import ABANDONED_SECONDS, DamagedError, ModelCache, key_of

FILES = {"config.json": 2, "model.safetensors": 1000}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written_model(tmp_path)


def written_model(tmp_path: Path) -> Path:
    """A folder with the FILES of a model."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(os.urandom(1000))
    return folder


def cache(tmp_path: Path, most: int | None = None) -> ModelCache:
    (tmp_path / "cache").mkdir(exist_ok=True)
    return ModelCache(tmp_path / "cache", most)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "entries").iterdir()}


def test_a_stored_model_is_copied_file_by_file_and_leaves_no_trace_of_the_copying(tmp_path: Path, source: Path) -> None:
    own = cache(tmp_path)
    assert not own.copy("a", FILES, tmp_path / "to")
    assert own.store("a", FILES, source)
    assert own.copy("a", FILES, tmp_path / "to")
    assert content(tmp_path / "to") == content(source)
    assert {path.name for path in (tmp_path / "cache/entries/a").iterdir()} == {*FILES, "cached.json"}
    assert list((tmp_path / "cache/partial").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "model.safetensors").write_bytes(b"x" * 1000),
        lambda entry: (entry / "cached.json").write_text("{"),
        lambda entry: (entry / "cached.json").write_text(json.dumps({"files": {"config.json": "0"}})),
        lambda entry: (entry / "cached.json").write_text("[]"),
        lambda entry: (entry / "cached.json").unlink(),
        lambda entry: (entry / "model.safetensors").unlink(),
    ],
    ids=["a file", "the list is cut", "the list lacks a file", "the list is another", "no list", "a file is missing"],
)
def test_a_damaged_model_is_refused_and_leaves_the_cache(tmp_path: Path, source: Path, damage: Any) -> None:
    own = cache(tmp_path)
    own.store("a", FILES, source)
    damage(tmp_path / "cache/entries/a")
    with pytest.raises(DamagedError):
        own.copy("a", FILES, tmp_path / "to")
    assert keys(tmp_path) == set()
    assert own.store("a", FILES, source)
    assert own.copy("a", FILES, tmp_path / "to2")


def test_the_least_recently_used_model_leaves_when_the_cache_is_full(tmp_path: Path, source: Path) -> None:
    own = cache(tmp_path, most=2500)
    for number, key in enumerate(("a", "b")):
        own.store(key, FILES, source)
        os.utime(tmp_path / "cache/entries" / key / "cached.json", (number + 1, number + 1))
    own.copy("a", FILES, tmp_path / "to")
    assert own.store("c", FILES, source)
    assert keys(tmp_path) == {"a", "c"}


def test_a_model_in_use_never_leaves_and_one_whose_pod_was_killed_does(tmp_path: Path, source: Path) -> None:
    own = cache(tmp_path, most=1500)
    own.store("a", FILES, source)
    sign = tmp_path / "cache/entries/a" / "in-use-1"
    sign.touch()
    assert not own.store("b", FILES, source)
    assert keys(tmp_path) == {"a"}
    long_ago = sign.stat().st_mtime - ABANDONED_SECONDS - 1
    os.utime(sign, (long_ago, long_ago))
    assert own.store("b", FILES, source)
    assert keys(tmp_path) == {"b"}


def test_while_it_copies_a_pod_keeps_the_model_and_says_so_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other, seen = cache(tmp_path, most=1500), cache(tmp_path, most=1500), []
    own.store("a", FILES, source)
    monkeypatch.setattr(model_cache, "SIGN_SECONDS", -1.0)
    copied = model_cache._copied

    def watched(file: Path, *arguments: Any, **options: Any) -> str:
        (sign,) = (tmp_path / "cache/entries/a").glob("in-use-*")
        os.utime(sign, (1, 1))
        found = copied(file, *arguments, **options)
        seen.append(sign.stat().st_mtime)
        return found

    monkeypatch.setattr(model_cache, "_copied", watched)
    monkeypatch.setattr("finetune_trainer.pod.at_once.AT_ONCE", 1)
    assert own.copy("a", FILES, tmp_path / "to")
    assert min(seen) > 1
    monkeypatch.setattr(model_cache, "_copied", copied)
    assert other.store("b", FILES, source)


def test_many_pods_store_and_copy_one_model_at_once(tmp_path: Path, source: Path) -> None:
    start, failed = threading.Barrier(8), []

    def pod(number: int) -> None:
        own = cache(tmp_path)
        start.wait()
        try:
            if not own.copy("a", FILES, tmp_path / f"to-{number}"):
                assert own.store("a", FILES, source)  # or another pod does
            if own.copy("a", FILES, tmp_path / f"to-{number}"):
                assert content(tmp_path / f"to-{number}") == content(source)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=pod, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert cache(tmp_path).copy("a", FILES, tmp_path / "to")
    assert {path.name for path in (tmp_path / "cache/entries/a").iterdir()} == {*FILES, "cached.json"}
    assert list((tmp_path / "cache/partial").iterdir()) == []


def test_what_killed_pods_left_is_removed_and_what_others_write_now_stays(tmp_path: Path, source: Path) -> None:
    own = cache(tmp_path)
    own.store("a", FILES, source)
    partial = tmp_path / "cache/partial"
    for name in ("old", "new"):
        (partial / name).mkdir()
        (partial / name / "model.safetensors").write_bytes(b"half")
    for path in (partial / "old/model.safetensors", partial / "old", partial / "new"):
        os.utime(path, (1, 1))
    own.store("b", FILES, source)
    assert {path.name for path in partial.iterdir()} == {"new"}


def test_a_model_that_another_pod_stored_meanwhile_stays(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, written = cache(tmp_path), model_cache._written

    def late(path: Path, data: bytes) -> None:
        monkeypatch.setattr(model_cache, "_written", written)
        (sign,) = (tmp_path / "cache/partial").glob("*/reserved-*")
        os.utime(sign, (2**32, 2**32))  # a clock that went back: the other pod takes its own reservation for the first
        cache(tmp_path).store("a", FILES, source)
        assert keys(tmp_path) == {"a"}
        written(path, data)

    monkeypatch.setattr(model_cache, "_written", late)
    assert own.store("a", FILES, source)
    assert own.copy("a", FILES, tmp_path / "to")
    assert list((tmp_path / "cache/partial").iterdir()) == []


def test_a_full_volume_leaves_no_half_model(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cache(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        own.store("a", FILES, source)
    assert keys(tmp_path) == set()
    assert list((tmp_path / "cache/partial").iterdir()) == []


def test_models_leave_a_volume_that_is_full_though_the_cache_has_no_limit(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cache(tmp_path)
    own.store("a", FILES, source)
    found = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda place: os.statvfs_result([*found[:4], 0, *found[5:]]))
    assert own.store("b", FILES, source)
    assert keys(tmp_path) == {"b"}


def test_each_identity_of_a_file_is_another_model() -> None:
    pins = {"config.json": "1", "model.safetensors": "2"}
    found = {
        key_of("s3://m/a", FILES, pins),
        key_of("s3://m/b", FILES, pins),
        key_of("s3://m/a", FILES | {"config.json": 3}, pins),
        key_of("s3://m/a", FILES, pins | {"config.json": "3"}),
    }
    assert len(found) == 4
    assert key_of("s3://m/a/", dict(reversed(FILES.items())), pins) in found


def other_store(
    tmp_path: Path, reserved: int, written: int = 0, age: float = 1.0, key: str = "other", name: str = "other"
) -> Path:
    """What another pod has in the volume that began to store a model `age` seconds ago."""
    part = tmp_path / "cache/partial" / name
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"x" * written)
    sign = part / f"reserved-{reserved}-{key}"
    sign.touch()
    began = sign.stat().st_mtime - age
    for path in (sign, part / "model.safetensors", part):
        os.utime(path, (began, began))
    return part


@pytest.mark.parametrize(
    ("most", "age", "written", "has_room"),
    [
        (2100, 1.0, 0, True),
        (1900, 1.0, 0, False),
        (1900, 1.0, 1000, False),  # a part that is written is not counted twice
        (2100, 1.0, 1000, True),
        (1900, -100.0, 0, True),  # its pod counts this store
        (1900, ABANDONED_SECONDS + 1, 1000, True),
    ],
)
def test_room_that_another_pod_has_reserved_is_taken_until_the_pod_is_known_to_be_killed(
    tmp_path: Path, source: Path, most: int, age: float, written: int, has_room: bool
) -> None:
    own = cache(tmp_path, most)
    part = other_store(tmp_path, 1000, written, age)
    assert own.store("a", FILES, source) is has_room
    assert part.exists() is (age < ABANDONED_SECONDS)
    assert [path.name for path in (tmp_path / "cache/partial").iterdir() if path != part] == []


def test_models_leave_for_what_another_pod_is_about_to_write_too(tmp_path: Path, source: Path) -> None:
    own = cache(tmp_path, most=2500)
    assert own.store("a", FILES, source)
    other_store(tmp_path, 1000)
    assert own.store("b", FILES, source)
    assert keys(tmp_path) == {"b"}


@pytest.mark.parametrize(("written", "has_room"), [(0, False), (900, True)])
def test_of_a_volume_what_others_have_still_to_write_is_not_free(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, written: int, has_room: bool
) -> None:
    own, found = cache(tmp_path), os.statvfs(tmp_path)
    other_store(tmp_path, 1000, written)
    monkeypatch.setattr(os, "statvfs", lambda place: os.statvfs_result([1, 1, *found[2:4], 1200, *found[5:]]))
    assert own.store("a", FILES, source) is has_room


def test_what_a_killed_pod_was_deleting_is_deleted_by_the_next_store(tmp_path: Path, source: Path) -> None:
    own = cache(tmp_path, most=1500)
    gone = tmp_path / "cache/partial/gone-1"
    gone.mkdir(parents=True)
    (gone / "model.safetensors").write_bytes(b"x" * 1000)
    assert own.store("a", FILES, source)
    assert not gone.exists()


def store_at_once(root: Path, source: Path, key: str, together: Any) -> None:
    """A pod of `test_stores_of_several_processes_never_exceed_the_limit`. All decide before one of them copies."""
    at_once = model_cache.each_at_once

    def late(*arguments: Any) -> None:
        together.wait()
        at_once(*arguments)

    model_cache.each_at_once = late  # type: ignore[assignment]
    together.wait()
    if not ModelCache(root, 2500).store(key, FILES, source):
        together.wait()


def test_stores_of_several_processes_never_exceed_the_limit(tmp_path: Path, source: Path) -> None:
    context, pods = multiprocessing.get_context("spawn"), 5
    cache(tmp_path)
    together = context.Barrier(pods, timeout=60)
    processes = [
        context.Process(target=store_at_once, args=(tmp_path / "cache", source, str(number), together))
        for number in range(pods)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * pods
    assert len(keys(tmp_path)) <= 2
    assert list((tmp_path / "cache/partial").iterdir()) == []
