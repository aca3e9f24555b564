"""Several pods that need one new model at once: one stores it, and no other model leaves the cache for the others."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.base.cache import model_cache, reservations
from finetune_trainer.base.cache.model_cache import ABANDONED_SECONDS, ModelCache
from finetune_trainer.base.cache.reservations import Reservation
from tests.unit.finetune_trainer.base.cache.test_model_cache import FILES, cache, keys, other_store, written_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written_model(tmp_path)


LIMIT = 3500
"""Room for three models of FILES, of which `full` stores two."""


def full(tmp_path: Path, source: Path) -> ModelCache:
    """A cache with two models and room for one more."""
    own = cache(tmp_path, LIMIT)
    assert own.store("a", FILES, source)
    assert own.store("b", FILES, source)
    return own


def test_a_model_that_the_cache_has_is_not_stored_again_and_counts_as_used(tmp_path: Path, source: Path) -> None:
    own = full(tmp_path, source)
    assert own.store("c", FILES, source)
    entry = tmp_path / "cache/entries/c"
    for file in entry.iterdir():
        os.utime(file, (1, 1))
    before = {path.name: path.stat().st_ino for path in entry.iterdir()}
    assert own.store("c", FILES, source)
    assert keys(tmp_path) == {"a", "b", "c"}
    assert {path.name: path.stat().st_ino for path in entry.iterdir()} == before
    assert (entry / "cached.json").stat().st_mtime > 1
    assert (entry / "model.safetensors").stat().st_mtime == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "model.safetensors").write_bytes(b"x" * 999),
        lambda entry: (entry / "cached.json").write_text("{"),
        lambda entry: (entry / "cached.json").unlink(),
        lambda entry: (entry / "model.safetensors").unlink(),
    ],
    ids=["a file is cut", "the list is cut", "no list", "a file is missing"],
)
def test_an_entry_that_is_not_whole_is_stored_again(tmp_path: Path, source: Path, damage: Any) -> None:
    own = cache(tmp_path)
    own.store("a", FILES, source)
    damage(tmp_path / "cache/entries/a")
    assert own.store("a", FILES, source)
    assert own.copy("a", FILES, tmp_path / "to")


@pytest.mark.parametrize(
    ("age", "stored"), [(1.0, False), (-100.0, True), (ABANDONED_SECONDS + 1, True)], ids=["first", "later", "killed"]
)
def test_a_pod_leaves_the_model_to_the_pod_that_reserved_it_first_until_that_one_counts_as_killed(
    tmp_path: Path, source: Path, age: float, stored: bool
) -> None:
    own = full(tmp_path, source)
    other_store(tmp_path, 1002, age=age, key="c")
    assert own.store("c", FILES, source), "there is room"
    assert keys(tmp_path) == ({"a", "b", "c"} if stored else {"a", "b"})


def test_of_two_reservations_of_one_moment_exactly_one_is_the_first(tmp_path: Path, source: Path) -> None:
    stored = []
    for name in ("0", "g"):  # before and after every name in hexadecimal digits
        (tmp_path / name).mkdir()
        own = full(tmp_path / name, source)
        part = other_store(tmp_path / name, 1002, key="c", name=name)
        waiting = ModelCache._wait_for_clock

        def at_once(self: ModelCache, reservation: Any, part: Path = part, waiting: Any = waiting) -> None:
            waiting(self, reservation)
            os.utime(part / "reserved-1002-c", ns=(reservation.made, reservation.made))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ModelCache, "_wait_for_clock", at_once)
            assert own.store("c", FILES, source)
        stored.append("c" in keys(tmp_path / name))
    assert stored == [False, True]


def test_a_pod_looks_only_when_the_clock_of_the_volume_has_gone_on(tmp_path: Path) -> None:
    own = cache(tmp_path)
    (tmp_path / "cache/entries").mkdir()
    soon = Reservation(own._clock() + 50_000_000, "a")
    own._wait_for_clock(soon)
    assert own._clock() > soon.made


def test_a_clock_that_stands_still_holds_no_pod_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cache(tmp_path)
    (tmp_path / "cache/entries").mkdir()
    monkeypatch.setattr(model_cache, "CLOCK_SECONDS", 0.05)
    own._wait_for_clock(Reservation(2**62, "a"))


def test_pods_that_reserve_one_model_need_its_room_once_and_none_if_it_is_stored(tmp_path: Path, source: Path) -> None:
    own = cache(tmp_path, most=2500)
    for name in ("1", "2", "3"):
        other_store(tmp_path, 1002, key="c", name=name)
    assert own.store("a", FILES, source)
    assert cache(tmp_path, most=1500).store("c", FILES, source), "another pod stores it"
    (tmp_path / "cache/entries/a").rename(tmp_path / "cache/entries/c")
    assert own.store("b", FILES, source)
    assert keys(tmp_path) == {"b", "c"}
    assert not own.store("d", FILES, source) or "c" in keys(tmp_path), "the pods that wait for it would store it again"


WATCHED = {model_cache.__file__, reservations.__file__}
WAITING = {"_wait_for_clock", "_now", "_clock"}
"""Functions that run for different numbers of lines."""


def test_a_second_pod_at_any_moment_of_a_store_changes_nothing(tmp_path: Path, source: Path) -> None:
    """A second pod stores the same model before each line of the first one's store, as a whole."""
    moments = 0
    while where := with_second_pod(tmp_path / str(moments), source, moments):
        assert keys(tmp_path / str(moments)) == {"a", "b", "c"}, where
        assert cache(tmp_path / str(moments)).copy("c", FILES, tmp_path / f"to-{moments}"), where
        assert list((tmp_path / str(moments) / "cache/partial").iterdir()) == [], where
        moments += 1
    assert moments > 100


def with_second_pod(folder: Path, source: Path, moment: int) -> str | None:
    """Returns before which line of the first pod's store the second one came; None if the store has fewer lines."""
    folder.mkdir()
    first, second, seen = full(folder, source), cache(folder, LIMIT), []

    def at_each_line(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED or frame.f_code.co_name in WAITING:
            return None
        if event == "line":
            seen.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            if len(seen) == moment + 1:
                sys.settrace(None)
                assert second.store("c", FILES, source)
        return at_each_line

    outer = sys.gettrace()
    sys.settrace(at_each_line)
    try:
        assert first.store("c", FILES, source)
    finally:
        sys.settrace(outer)
    return seen[moment] if moment < len(seen) else None


def store_one_model(root: Path, source: Path, together: Any) -> None:
    """A pod of `test_pods_on_several_nodes_store_one_model_without_another_one_leaving`."""
    together.wait()
    if not ModelCache(root, LIMIT).store("c", FILES, source):
        raise SystemExit(1)


def test_pods_on_several_nodes_store_one_model_without_another_one_leaving(tmp_path: Path, source: Path) -> None:
    full(tmp_path, source)
    context, pods = multiprocessing.get_context("spawn"), 5
    together = context.Barrier(pods, timeout=60)
    arguments = (tmp_path / "cache", source, together)
    processes = [context.Process(target=store_one_model, args=arguments) for _ in range(pods)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * pods
    assert keys(tmp_path) == {"a", "b", "c"}
    assert list((tmp_path / "cache/partial").iterdir()) == []
