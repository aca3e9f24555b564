"""Files in the volume of a PersistentVolumeClaim: what is read, and that nothing outside the volume is."""

import contextlib
import errno
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import beats
from finetune_trainer.storage.claims import files as claim_files
from finetune_trainer.storage.job_storage import JobStorage, open_storage

JOB = {"namespace": "team", "name": "tickets", "uid": "0123"}


def storage(mounts: Path, allowed: str | None = "*", job: dict[str, str] | None = JOB) -> JobStorage:
    body: dict[str, Any] = {
        "job": job,
        "spec": {
            "model": {"uri": "pvc://models/llama"},
            "dataset": {"train": [{"uri": "pvc://data/rows/*.jsonl"}]},
            "output": {"uri": "s3://results/run"},
        },
        "claims": {"allowed": [allowed]} if allowed else None,
    }
    return open_storage(Bundle.model_validate(body), claims_dir=mounts)


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    """The folder in which a pod finds two volumes, beside a file that is in none."""
    for name in ("models/llama/config.json", "data/rows/a.jsonl", "data/rows/deep/b.jsonl", "data/other.jsonl"):
        path = tmp_path / "volumes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.jsonl").write_text("a key")
    return tmp_path / "volumes"


def test_a_file_is_read_whole_in_part_and_as_a_stream(mounts: Path) -> None:
    files = storage(mounts)
    assert files.size("pvc://data/other.jsonl") == 16
    assert files.size("pvc://data/none.jsonl") is None
    assert files.size("pvc://data/rows") is None
    assert files.read_bytes("pvc://data/other.jsonl", 5, 5) == b"other"
    with files.open("pvc://data/rows/a.jsonl") as stream:
        assert stream.read() == b"data/rows/a.jsonl"


def test_files_are_listed_as_in_s3(mounts: Path, tmp_path: Path) -> None:
    files = storage(mounts)
    assert files.list("pvc://data/rows/*.jsonl") == ["pvc://data/rows/a.jsonl"]
    assert files.list("pvc://data/**/*.jsonl") == [
        "pvc://data/other.jsonl",
        "pvc://data/rows/a.jsonl",
        "pvc://data/rows/deep/b.jsonl",
    ]
    assert files.list("pvc://data/none/*.jsonl") == []
    assert files.list_folder("pvc://models/llama") == {"config.json": 24}
    assert files.list_folder("pvc://models") == {"llama/config.json": 24}
    files.download_folder("pvc://models", tmp_path / "copy")
    assert (tmp_path / "copy/llama/config.json").read_text() == "models/llama/config.json"


def test_links_within_a_volume_are_followed(mounts: Path) -> None:
    """As in the cache of huggingface_hub, and as `current` beside versions."""
    (mounts / "models" / "blobs").mkdir()
    (mounts / "models" / "blobs" / "1").write_text("weights")
    (mounts / "models" / "llama" / "model.safetensors").symlink_to("../blobs/1")
    (mounts / "models" / "current").symlink_to("llama")
    (mounts / "models" / "llama" / "again").symlink_to("..")  # never ends
    files = storage(mounts)
    assert (
        files.list_folder("pvc://models/current")
        == {
            "config.json": 24,
            "model.safetensors": 7,
            "again/blobs/1": 7,
        }
        | {}
    )
    assert files.read_bytes("pvc://models/current/model.safetensors") == b"weights"


@pytest.mark.parametrize("target", ["../../../secret/key.jsonl", "{}/secret/key.jsonl"], ids=["relative", "absolute"])
def test_a_link_out_of_the_volume_is_refused_and_never_left_out(mounts: Path, target: str) -> None:
    (mounts / "data" / "rows" / "key.jsonl").symlink_to(target.format(mounts.parent))
    files = storage(mounts)
    assert "pvc://data/rows/key.jsonl" in files.list("pvc://data/rows/*.jsonl")
    for call in (files.read_bytes, files.identity, files.size, lambda uri: files.open(uri).__enter__()):
        with pytest.raises(TrainerFailure, match="leads out of the volume of PersistentVolumeClaim data") as caught:
            call("pvc://data/rows/key.jsonl")
        assert caught.value.reason is FailureReason.DATASET_NOT_FOUND


def test_a_link_to_a_folder_outside_of_the_volume_is_refused(mounts: Path) -> None:
    (mounts / "data" / "rows" / "elsewhere").symlink_to(mounts.parent / "secret")
    files = storage(mounts)
    for call in (
        lambda: files.list("pvc://data/rows/**.jsonl"),
        lambda: files.read_bytes("pvc://data/rows/elsewhere/key.jsonl"),
    ):
        with pytest.raises(TrainerFailure, match="leads out of the volume"):
            call()


def test_a_link_to_another_volume_is_refused(mounts: Path) -> None:
    (mounts / "data" / "rows" / "m.jsonl").symlink_to(mounts / "models" / "llama" / "config.json")
    with pytest.raises(TrainerFailure, match="leads out of the volume"):
        storage(mounts).read_bytes("pvc://data/rows/m.jsonl")


def test_a_volume_whose_name_begins_with_that_of_another_is_another(mounts: Path) -> None:
    (mounts / "data-2").mkdir()
    (mounts / "data-2" / "x.jsonl").write_text("x")
    (mounts / "data" / "x.jsonl").symlink_to("../data-2/x.jsonl")
    with pytest.raises(TrainerFailure, match="leads out of the volume"):
        storage(mounts).read_bytes("pvc://data/x.jsonl")


def test_two_dots_in_a_bundle_written_by_hand_do_not_leave_the_volume(mounts: Path) -> None:
    with pytest.raises(TrainerFailure, match="leads out of the volume"):
        storage(mounts).read_bytes("pvc://data/../../secret/key.jsonl")


def test_a_link_that_is_replaced_while_it_is_opened_gives_nothing_away(
    mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = mounts / "data" / "rows" / "a.jsonl", os.open

    def opened_late(place: Any, flags: int) -> int:
        path.unlink()
        path.symlink_to(mounts.parent / "secret" / "key.jsonl")
        return opened(place, flags)

    monkeypatch.setattr(os, "open", opened_late)
    with pytest.raises(TrainerFailure, match="leads out of the volume"):
        storage(mounts).read_bytes("pvc://data/rows/a.jsonl")


def test_a_pipe_does_not_keep_the_pod_waiting(mounts: Path) -> None:
    os.mkfifo(mounts / "data" / "pipe.jsonl")
    with pytest.raises(TrainerFailure, match=r"pvc://data/pipe\.jsonl is not a regular file"):
        storage(mounts).read_bytes("pvc://data/pipe.jsonl")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pvc://models/llama/none", FailureReason.MODEL_NOT_FOUND),
        ("pvc://data/none.jsonl", FailureReason.DATASET_NOT_FOUND),
        ("pvc://data/other.jsonl/none.jsonl", FailureReason.DATASET_NOT_FOUND),
    ],
)
def test_a_missing_file_is_called_by_what_it_was_for(mounts: Path, uri: str, reason: FailureReason) -> None:
    with pytest.raises(TrainerFailure, match=f"There is no file {uri}") as caught:
        storage(mounts).read_bytes(uri)
    assert caught.value.reason is reason


def test_a_claim_that_the_profile_does_not_allow_is_refused(mounts: Path) -> None:
    with pytest.raises(TrainerFailure, match="PersistentVolumeClaim data is not among the claims") as caught:
        storage(mounts, "models").size("pvc://data/other.jsonl")
    assert caught.value.reason is FailureReason.SPEC_INVALID
    with pytest.raises(TrainerFailure, match="allows no claims"):
        storage(mounts, None).size("pvc://data/other.jsonl")


def test_a_volume_that_is_not_mounted_is_named_and_outside_kubernetes_a_path_is_proposed(mounts: Path) -> None:
    with pytest.raises(TrainerFailure, match="PersistentVolumeClaim gone is not mounted in this pod") as caught:
        storage(mounts).size("pvc://gone/x")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    with pytest.raises(TrainerFailure, match="use the local path") as caught:
        storage(mounts, job=None).size("pvc://gone/x")
    assert caught.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.parametrize(
    ("number", "reason", "told"),
    [
        (errno.EACCES, FailureReason.STORAGE_ACCESS_DENIED, f"does not allow user {os.getuid()} of the pod"),
        (errno.EIO, FailureReason.STORAGE_UNAVAILABLE, "failed while pvc://data/other.jsonl was used"),
        (errno.ESTALE, FailureReason.STORAGE_UNAVAILABLE, "Check the storage behind PersistentVolumeClaim data"),
    ],
)
def test_an_error_of_the_file_system_has_a_reason(
    mounts: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: FailureReason, told: str
) -> None:
    """Tests run as root, which every permission is given to."""

    def failing(place: Any, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(TrainerFailure, match=told) as caught:
        storage(mounts).read_bytes("pvc://data/other.jsonl")
    assert caught.value.reason is reason


def test_an_error_of_the_content_of_an_open_file_stays_what_it_is(mounts: Path) -> None:
    opened = storage(mounts).open("pvc://data/other.jsonl")
    with pytest.raises(gzip.BadGzipFile), opened as stream, gzip.open(stream) as rows:
        rows.read()


def test_a_folder_that_cannot_be_read_is_not_left_out(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = os.scandir

    def scan(place: Path) -> Any:
        if place.name in ("deep", "lost+found"):
            raise PermissionError(errno.EACCES, "denied")
        return scanned(place)

    (mounts / "models" / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", scan)
    assert storage(mounts).list_folder("pvc://models") == {"llama/config.json": 24}
    with pytest.raises(TrainerFailure, match="does not allow user"):
        storage(mounts).list("pvc://data/**/*.jsonl")


def test_the_identity_changes_with_the_content_and_needs_only_the_ends_of_a_large_file(
    mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_files, "SAMPLE_BYTES", 10)
    path, uri, files = mounts / "data" / "x.jsonl", "pvc://data/x.jsonl", storage(mounts)
    seen = set()
    for content in ("a" * 15, "a" * 14 + "b", "a" * 50, "a" * 49 + "b", "b" + "a" * 49, "a" * 51):
        path.write_text(content)
        os.utime(path, (1, 1))
        seen.add(files.identity(uri))
    os.utime(path, (2, 2))
    assert len({*seen, files.identity(uri)}) == 7
    path.write_text("c" * 25 + "b" + "c" * 25)
    os.utime(path, (4, 4))
    before, exact = files.identity(uri), files.identity(uri, exact=True)
    path.write_text("c" * 51)
    os.utime(path, (4, 4))
    assert files.identity(uri) == before, "weights keep their identity when a volume is copied with its times"
    assert files.identity(uri, exact=True) != exact, "rows that are reused must be the rows in the file"
    path.write_text("small")
    before = files.identity(uri)
    os.utime(path, (3, 3))
    assert files.identity(uri) == before, "a small file is read whole"


def test_a_bundle_without_claims_can_still_be_read() -> None:
    """As an earlier operator wrote it."""
    spec = {
        "model": {"uri": "s3://m/b"},
        "dataset": {"train": [{"uri": "s3://d/x.jsonl"}]},
        "output": {"uri": "s3://r/o"},
    }
    assert Bundle.model_validate_json(json.dumps({"spec": spec})).claims is None


def test_what_another_pod_removes_during_a_listing_is_left_out(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other jobs write and delete temporary files in the same volume."""
    scanned = os.scandir

    def scan(place: Path) -> Any:
        found = list(scanned(place))
        if isinstance(place, Path) and place.name == "work":
            shutil.rmtree(place)
        return contextlib.nullcontext(found)

    (mounts / "data" / "work" / "checkpoints").mkdir(parents=True)
    (mounts / "data" / "work" / "partial-1").write_text("half")
    monkeypatch.setattr(os, "scandir", scan)
    assert storage(mounts).list("pvc://data/*.jsonl") == ["pvc://data/other.jsonl"]


def test_a_link_to_itself_does_not_hide_the_other_files(mounts: Path) -> None:
    (mounts / "data" / "rows" / "loop").symlink_to("loop")
    (mounts / "data" / "rows" / "loop.jsonl").symlink_to("loop.jsonl")
    files = storage(mounts)
    assert files.list("pvc://data/rows/*.jsonl") == ["pvc://data/rows/a.jsonl", "pvc://data/rows/loop.jsonl"]
    with pytest.raises(TrainerFailure, match=r"There is no file pvc://data/rows/loop\.jsonl"):
        files.read_bytes("pvc://data/rows/loop.jsonl")


def linked(mounts: Path, links: dict[str, str]) -> JobStorage:
    """The storage after links were made in the volume data: from each path to its target."""
    for path, target in links.items():
        (mounts / "data" / path).symlink_to(target)
    return storage(mounts)


@pytest.mark.parametrize(
    "links",
    [
        {"again": "."},
        {"rows/up": ".."},
        {"rows/deep/up": "../.."},
        {"rows/again": "../rows"},
        {"again": ".", "rows/up": "..", "rows/deep/again": "."},
        {"current": "rows"},
        {"a-copy.jsonl": "rows/a.jsonl", "rows/z-copy.jsonl": "a.jsonl"},
        {"chain": "current", "current": "rows", "rows/deep/side": "../../current"},
    ],
    ids=str,
)
def test_each_file_is_listed_once_by_its_own_name(mounts: Path, links: dict[str, str]) -> None:
    files = linked(mounts, links)
    assert files.list("pvc://data/**/*.jsonl") == [
        "pvc://data/other.jsonl",
        "pvc://data/rows/a.jsonl",
        "pvc://data/rows/deep/b.jsonl",
    ]


def test_a_file_that_only_its_link_matches_is_listed_by_the_link(mounts: Path) -> None:
    links = {"zz": "rows", "current": "rows", "rows/first.json": "a.jsonl", "team": "rows/deep"}
    files = linked(mounts, links)
    for pattern, found in {
        "**/current/*.jsonl": ["current/a.jsonl"],
        "z?/*.jsonl": ["zz/a.jsonl"],
        "?*/*.json": ["rows/first.json"],
        "*/b.jsonl": ["team/b.jsonl"],
        "*/*/b.jsonl": ["rows/deep/b.jsonl"],
    }.items():
        assert files.list(f"pvc://data/{pattern}") == [f"pvc://data/{path}" for path in found], pattern


def test_folders_with_links_to_each_other_are_each_read_once(mounts: Path, scanned: list[str]) -> None:
    """By every path without a repetition, twelve folders would be read a billion times."""
    names = [f"team-{number:02}" for number in range(12)]
    for name in names:
        (mounts / "data" / "teams" / name).mkdir(parents=True)
        (mounts / "data" / "teams" / name / "rows.jsonl").touch()
        for other in names:
            (mounts / "data" / "teams" / name / f"to-{other}").symlink_to(f"../{other}")
    expected = [f"pvc://data/teams/{name}/rows.jsonl" for name in names]
    assert storage(mounts).list("pvc://data/teams/**/*.jsonl") == expected
    assert len(scanned) == len(names) + 1


def test_every_name_of_a_file_of_a_model_counts(mounts: Path) -> None:
    """Files with the same content are one file in the cache of huggingface_hub, and the model needs each name."""
    (mounts / "models" / "blob").write_text("{}")
    for name in ("tokenizer_config.json", "generation_config.json"):
        (mounts / "models" / "llama" / name).symlink_to("../blob")
    (mounts / "models" / "shared").mkdir()
    (mounts / "models" / "shared" / "config.json").touch()
    for name in ("1_Pooling", "2_Pooling"):
        (mounts / "models" / "llama" / name).symlink_to("../shared")
    names = {"config.json", "tokenizer_config.json", "generation_config.json"}
    names |= {"1_Pooling/config.json", "2_Pooling/config.json"}
    assert set(storage(mounts).list_folder("pvc://models/llama")) == names


@pytest.mark.parametrize("target", ["../../secret", "/", "{}/secret"])
def test_a_loop_does_not_hide_a_link_out_of_the_volume(mounts: Path, target: str) -> None:
    files = linked(mounts, {"again": ".", "out": target.format(mounts.parent)})
    with pytest.raises(TrainerFailure, match="leads out of the volume of PersistentVolumeClaim data") as caught:
        files.list("pvc://data/**/*.jsonl")
    assert caught.value.reason is FailureReason.DATASET_NOT_FOUND


def test_a_name_that_is_not_unicode_is_refused_before_it_is_used(mounts: Path) -> None:
    """No report could contain it, so the job would fail after its training."""
    (mounts / "data" / "rows" / os.fsdecode(b"K\xf6ln.jsonl")).touch()
    files = storage(mounts)
    (uri,) = files.list("pvc://data/rows/K*.jsonl")
    for call in (files.read_bytes, files.identity, files.size, lambda uri: files.open(uri).__enter__()):
        with pytest.raises(TrainerFailure, match=r"K\\udcf6ln\.jsonl is not UTF-8\. Rename the file") as caught:
            call(uri)
        assert caught.value.reason is FailureReason.DATASET_NOT_FOUND
        caught.value.message.encode()


def test_doubled_slashes_are_one_slash_as_in_every_file_system(mounts: Path) -> None:
    files = storage(mounts)
    for folder in ("pvc://data//rows", "pvc://data/rows/", "pvc://data//rows//"):
        assert files.list(f"{folder}/*.jsonl") == [f"{folder}/a.jsonl"]
        assert files.read_bytes(f"{folder}/a.jsonl") == b"data/rows/a.jsonl"


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that were looked into."""
    seen: list[str] = []
    scan = os.scandir

    def recorded(place: Path | str) -> Any:
        seen.append(Path(place).name)
        return scan(place)

    monkeypatch.setattr(os, "scandir", recorded)
    return seen


@pytest.mark.parametrize(
    ("pattern", "folders"),
    [
        ("*.jsonl", ["data"]),
        ("rows/*.jsonl", ["rows"]),
        ("ro*/*.jsonl", ["data", "rows"]),
        ("r*/deep/b.jsonl", ["data", "rows", "deep"]),
        ("**/b.jsonl", ["data", "rows", "deep", "zone"]),
    ],
)
def test_only_the_folders_that_can_match_are_looked_into(
    mounts: Path, scanned: list[str], pattern: str, folders: list[str]
) -> None:
    """A volume can have millions of files beside those of the job."""
    (mounts / "data" / "zone").mkdir()
    assert storage(mounts).list(f"pvc://data/{pattern}")
    assert sorted(scanned) == sorted(folders)


@pytest.mark.parametrize(
    ("levels", "found"), [(1, {"own"}), (2, {"own", "a/file"}), (None, {"own", "a/file", "a/b/file"})]
)
def test_the_files_of_a_folder_can_be_listed_to_a_depth(
    mounts: Path, tmp_path: Path, scanned: list[str], levels: int | None, found: set[str]
) -> None:
    for folder in (mounts / "models" / "deep", tmp_path / "local"):
        for path in ("own", "a/file", "a/b/file"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
    for uri in ("pvc://models/deep", str(tmp_path / "local")):
        scanned.clear()
        assert set(storage(mounts).list_folder(uri, levels)) == found
        assert len(scanned) == (levels or 3)


def test_a_long_listing_shows_that_it_goes_on_before_its_first_file_is_known(mounts: Path) -> None:
    """The files are sorted before they are handed on, and millions of them take minutes."""
    for number in range(50):
        (mounts / "data" / "empty" / str(number)).mkdir(parents=True)
    files, before = storage(mounts), beats()
    assert files.list("pvc://data/empty/**/none") == []
    assert beats() - before >= 50
