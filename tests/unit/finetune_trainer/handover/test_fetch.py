"""The base model comes from the cache of the namespace, or from its source, before the trainer starts."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_trainer.base.cache.model_cache import ModelCache
from finetune_trainer.handover.fetch import FETCHED, FOLDER, Fetched, fetch, take
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.pod.termination import StopRequested
from finetune_trainer.storage.job_storage import open_storage
from finetune_trainer.train.work import fetch_model
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight_runs import run


class Namespace:
    """The pods of jobs over one model, and the cache that they share."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder, self.bundle = folder, bundle
        self.storage, self.prepared = open_storage(bundle), run(bundle)
        self.model = Path(bundle.spec.model.uri)
        self.cache = ModelCache(folder / "cache", None)
        (folder / "cache").mkdir()
        self.pods = 0

    def pod(self, cache: Any = None) -> tuple[str, Path]:
        """What a fetching container says, and the folder that the trainer shares with it."""
        self.pods += 1
        scratch = self.folder / f"pod-{self.pods}"
        scratch.mkdir()
        return fetch(self.bundle, self.storage, cache or self.cache, scratch), scratch

    def entries(self) -> list[Path]:
        return list((self.folder / "cache" / "entries").iterdir())


@pytest.fixture
def namespace(make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path) -> Namespace:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    return Namespace(tmp_path, make_bundle(model={"uri": str(tmp_path / "model")}))


def content(folder: Path, prepared: Prepared) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in prepared.model_files}


def test_the_first_pod_downloads_the_model_and_the_second_finds_it_in_the_cache(namespace: Namespace) -> None:
    uri, prepared = namespace.bundle.spec.model.uri, namespace.prepared
    for cached, told in ((False, "was downloaded, because the cache did not have it"), (True, "came from the cache")):
        said, scratch = namespace.pod()
        assert told in said
        fetched = take(uri, prepared, scratch / "model", scratch)
        assert fetched
        assert fetched.cached is cached
        assert content(scratch / "model", prepared) == content(namespace.model, prepared)
        assert set(prepared.model_files) == {path.name for path in (scratch / "model").iterdir()}


def test_the_trainer_takes_the_model_and_reports_the_seconds_of_the_fetch(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace.pod()
    _, scratch = namespace.pod()
    monkeypatch.setattr(take, "__defaults__", (scratch,))
    shutil.rmtree(namespace.model)  # nothing is downloaded
    seconds = fetch_model(namespace.storage, namespace.bundle.spec.model.uri, namespace.prepared, tmp_path / "to")
    assert 0 <= seconds < 2
    assert "The base model came from the cache in " in capsys.readouterr().out


def test_a_job_that_may_not_read_the_source_gets_no_copy(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace.pod()

    def refused(uri: str, exact: bool) -> str:
        raise PermissionError(13, "denied", uri)

    monkeypatch.setattr(namespace.storage._stores._local, "identity", refused)
    said, scratch = namespace.pod()
    assert "so the trainer downloads it itself" in said
    assert "denied access" in said
    assert list(scratch.iterdir()) == []


def test_a_model_that_was_replaced_at_its_source_is_not_taken_from_the_cache(namespace: Namespace) -> None:
    namespace.pod()
    path = namespace.model / "config.json"
    path.write_bytes(path.read_bytes().replace(b"{", b"{ ", 1)[:-1])
    said, scratch = namespace.pod()
    assert "was replaced after preflight had read it" in said
    assert take(namespace.bundle.spec.model.uri, namespace.prepared, scratch / "model", scratch) is None


def test_an_edited_model_card_is_fetched_beside_the_cached_weights(namespace: Namespace) -> None:
    card, uri = namespace.model / "README.md", namespace.bundle.spec.model.uri
    card.write_text("of the first job")
    prepared = run(namespace.bundle)
    for words, cached in (("of the first job", False), ("edited", True), (None, True)):
        card.write_text(words) if words else card.unlink()
        said, scratch = namespace.pod()
        assert ("came from the cache" in said) is cached
        assert take(uri, prepared, scratch / "model", scratch)
        copy = scratch / "model" / "README.md"
        assert (copy.read_text() if copy.exists() else None) == words


def test_a_job_that_begins_after_the_model_card_was_edited_uses_the_same_cached_weights(namespace: Namespace) -> None:
    namespace.pod()
    (namespace.model / "README.md").write_text("edited")
    run(namespace.bundle)
    assert "came from the cache" in namespace.pod()[0]
    assert len(namespace.entries()) == 1


def test_a_damaged_copy_is_downloaded_again_and_replaced(
    namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace.pod()
    (entry,) = namespace.entries()
    weights = entry / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    said, scratch = namespace.pod()
    assert "was downloaded" in said
    assert "model.safetensors has another sha256" in capsys.readouterr().out
    assert content(scratch / FOLDER, namespace.prepared) == content(namespace.model, namespace.prepared)
    assert "came from the cache" in namespace.pod()[0]


class Broken(ModelCache):
    """A volume that fails."""

    def copy(self, *_: Any) -> bool:
        raise OSError(5, "Input/output error")

    def store(self, *_: Any) -> bool:
        raise OSError(28, "No space left on device")


def test_a_volume_that_fails_costs_only_the_download(namespace: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    said, scratch = namespace.pod(Broken(namespace.folder, None))
    assert "was downloaded" in said
    assert content(scratch / FOLDER, namespace.prepared) == content(namespace.model, namespace.prepared)
    assert "could not be written to the cache" in capsys.readouterr().out


def test_a_cache_without_room_is_told(namespace: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    namespace.pod(ModelCache(namespace.folder / "cache", most=10))
    assert "The cache has no room for the base model" in capsys.readouterr().out


def test_a_pod_that_must_stop_stops_while_it_fetches(namespace: Namespace) -> None:
    class Stopping(ModelCache):
        def copy(self, *_: Any) -> bool:
            raise StopRequested

    with pytest.raises(StopRequested):
        namespace.pod(Stopping(namespace.folder, None))


def test_without_prepared_data_the_trainer_reports_that(namespace: Namespace) -> None:
    namespace.storage.delete_prefix(namespace.bundle.spec.output.uri)
    assert "the trainer downloads it itself" in namespace.pod()[0]


def test_another_model_is_not_taken(namespace: Namespace) -> None:
    _, scratch = namespace.pod()
    assert take("/other/model", namespace.prepared, scratch / "model", scratch) is None
    assert (scratch / FETCHED).exists()
    assert take("/other/model", namespace.prepared, scratch / "model", namespace.folder) is None
    assert Fetched("k", 1.0, True).cached
