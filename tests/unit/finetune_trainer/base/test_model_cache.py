"""The cache of models in a volume that several pods use at once."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.base import model_cache
from finetune_trainer.base.model_cache import ABANDONED_SECONDS, DamagedError, ModelCache, key_of

FILES = {"config.json": 2, "model.safetensors": 1000}


@pytest.fixture
def source(tmp_path: Path) -> Path:
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
                own.store("a", FILES, source)
            assert own.copy("a", FILES, tmp_path / f"to-{number}")
            assert content(tmp_path / f"to-{number}") == content(source)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=pod, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
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
        cache(tmp_path).store("a", FILES, source)
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
