"""Folders that are complete and unchanged, or not used, on a real S3 server and on the local file system."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_trainer.checkpoints.folder import (
    MANIFEST,
    Manifest,
    Unusable,
    read_folder,
    read_manifest,
    write_folder,
)
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, join, open_storage
from tests.unit.finetune_trainer.storage.test_job_storage import (
    Place,
    bundle,
    claim_place,
    local_place,
    place,
    s3_place,
)

__all__ = ["claim_place", "local_place", "place", "s3_place"]

FACTS = {"data": "d1", "spec.training.seed": 3}


def written(place: Place, tmp_path: Path) -> str:
    big = tmp_path / "weights"
    big.write_bytes(bytes(range(256)) * 40)
    uri = place.uri("out", ".work", "u", "checkpoints", "step-00000001-p")
    write_folder(place.storage, uri, {"state.json": b"{}", "deep/weights": big}, FACTS)
    return uri


def why(place: Place, uri: str, into: Path, **options: dict[str, object]) -> str:
    read = read_folder(place.storage, uri, into, **options)
    assert isinstance(read, Unusable), read
    assert read.why.startswith(f"{uri} is not used: ")
    assert read.why.endswith(".")
    return read.why


def test_a_written_folder_is_read_with_its_files_and_facts(place: Place, tmp_path: Path) -> None:
    uri = written(place, tmp_path)
    read = read_folder(place.storage, uri, tmp_path / "into", FACTS)
    assert isinstance(read, Manifest)
    assert read.about == FACTS
    assert (tmp_path / "into" / "deep" / "weights").read_bytes() == (tmp_path / "weights").read_bytes()
    assert (tmp_path / "into" / "state.json").read_bytes() == b"{}"


Harm = Callable[[JobStorage, str], object]
HARMS: dict[str, tuple[Harm, str]] = {
    "the writer was killed before the manifest": (
        lambda storage, uri: _delete(storage, uri, MANIFEST),
        "it has no manifest.json",
    ),
    "a file is missing": (lambda storage, uri: _delete(storage, uri, "state.json"), "state.json is missing"),
    "a file is truncated": (
        lambda storage, uri: storage.write_bytes(join(uri, "deep/weights"), b"\0" * 17),
        "deep/weights has 17 bytes instead of 10,240",
    ),
    "a file is of another folder": (
        lambda storage, uri: storage.write_bytes(join(uri, "state.json"), b"[]"),
        "the content of its file state.json is not what was written",
    ),
    "the manifest is truncated": (
        lambda storage, uri: storage.write_bytes(join(uri, MANIFEST), b'{"version": 1, "fil'),
        "its manifest.json is damaged",
    ),
    "the manifest is of a later layout": (
        lambda storage, uri: storage.write_bytes(join(uri, MANIFEST), b'{"version": 2, "files": {}}'),
        "from another version of the trainer",
    ),
    "the manifest is not an object": (
        lambda storage, uri: storage.write_bytes(join(uri, MANIFEST), b"[]"),
        "its manifest.json is damaged",
    ),
}


def _delete(storage: JobStorage, uri: str, name: str) -> None:
    with storage._typed(uri) as files:
        files.delete([join(uri, name)])


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_folder_is_not_used_and_a_sentence_says_why(place: Place, tmp_path: Path, harm: str) -> None:
    uri = written(place, tmp_path)
    act, sentence = HARMS[harm]
    act(place.storage, uri)
    assert sentence in why(place, uri, tmp_path / "into")


def test_a_folder_of_another_run_is_not_used_and_the_differing_fact_is_named(place: Place, tmp_path: Path) -> None:
    uri = written(place, tmp_path)
    assert "it was written for spec.training.seed 3, and this run has 4" in why(
        place, uri, tmp_path / "into", facts=FACTS | {"spec.training.seed": 4}
    )
    assert "for no more, and this run has 1" in why(place, uri, tmp_path / "into", facts=FACTS | {"more": 1})
    fewer = {"spec.training.seed": 3}
    assert 'for data "d1", and this run has none' in why(place, uri, tmp_path / "into", facts=fewer)
    assert isinstance(read_manifest(place.storage, uri, FACTS | {"data": "d2"}), Unusable)


def test_a_folder_that_does_not_exist_is_not_used(place: Place, tmp_path: Path) -> None:
    assert "no manifest.json" in why(place, place.uri("out", "nothing"), tmp_path / "into")


def test_a_file_that_another_pod_deletes_in_between_makes_the_folder_unusable(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, download = written(place, tmp_path), JobStorage.download_folder

    def late(storage: JobStorage, source: str, to: Path, wanted: Callable[[str], bool]) -> None:
        sizes = storage.list_folder(source)
        monkeypatch.setattr(JobStorage, "list_folder", lambda *_: sizes)
        _delete(storage, source, "state.json")
        download(storage, source, to, wanted)

    monkeypatch.setattr(JobStorage, "download_folder", late)
    assert "state.json was deleted while it was read" in why(place, uri, tmp_path / "into")


def test_a_storage_that_does_not_answer_is_a_failure_and_no_unusable_folder(s3_place: Place, tmp_path: Path) -> None:
    uri = written(s3_place, tmp_path)
    gone = s3_place.open(endpoint="http://127.0.0.1:1")
    with pytest.raises(TrainerFailure) as failed:
        read_folder(gone, uri, tmp_path / "into")
    assert failed.value.reason is FailureReason.STORAGE_UNAVAILABLE


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".", "a//b", "manifest.json", "a/", "./a"])
def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    storage, uri = open_storage(bundle(str(tmp_path))), str(tmp_path / "folder")
    storage.write_bytes(join(uri, MANIFEST), json.dumps({"files": {name: {"size": 0, "sha256": ""}}}).encode())
    read = read_manifest(storage, uri)
    assert isinstance(read, Unusable)
    assert "damaged" in read.why


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_content_of_a_manifest_raises(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("folder")
    storage = open_storage(bundle(str(folder)))
    storage.write_bytes(join(str(folder), "f", MANIFEST), content)
    assert isinstance(read_manifest(storage, join(str(folder), "f")), Unusable)
