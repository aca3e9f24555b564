"""Files by URI, on a real S3 server with signatures enforced, in a volume, and on the local file system."""

import io
import random
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import beats, patience
from finetune_trainer.storage.job_storage import JobStorage, join, open_storage
from finetune_trainer.storage.s3 import files as s3_module

JOB = {"namespace": "team", "name": "tickets", "uid": "0123"}


class Place:
    """A folder to test in, and the storage it is reached through."""

    def __init__(self, folder: str, open: Callable[..., JobStorage]) -> None:
        self.folder, self.open = folder, open
        self.storage = open()

    def uri(self, *parts: str) -> str:
        return join(self.folder, *parts)


def bundle(folder: str, storages: list[dict[str, Any]] | None = None, job: dict[str, str] | None = None) -> Bundle:
    return Bundle.model_validate(
        {
            "job": job,
            "claims": {"allowed": ["*"]},
            "spec": {
                "model": {"uri": join(folder, "model")},
                "dataset": {"train": [{"uri": join(folder, "data", "*.jsonl")}]},
                "output": {"uri": join(folder, "out")},
            },
            "storages": storages or [],
        }
    )


@pytest.fixture
def s3_place(s3: Any) -> Place:
    bucket = s3.bucket(f"test-{uuid.uuid4().hex[:12]}")

    def open(secret: str | None = "owner", endpoint: str = s3.endpoint, buckets: str = "test-*") -> JobStorage:
        storages = [{"buckets": [buckets], "endpoint": endpoint, "credentialsSecretName": secret}]
        return open_storage(bundle(f"s3://{bucket}", storages, JOB), s3.secrets_dir)

    return Place(f"s3://{bucket}", open)


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    return Place(str(tmp_path), lambda: open_storage(bundle(str(tmp_path))))


@pytest.fixture
def claim_place(tmp_path: Path) -> Place:
    (tmp_path / "volumes" / "team-data").mkdir(parents=True)
    folder = "pvc://team-data/all"
    return Place(folder, lambda: open_storage(bundle(folder, job=JOB), claims_dir=tmp_path / "volumes"))


@pytest.fixture(params=["s3_place", "local_place", "claim_place"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


def test_what_is_written_can_be_read_whole_in_part_and_line_by_line(place: Place) -> None:
    uri = place.uri("data", "a b+ü.jsonl")
    assert not place.storage.exists(uri)
    assert place.storage.write_bytes(uri, b"one\ntwo\nthree")
    assert place.storage.size(uri) == 13
    assert place.storage.read_bytes(uri) == b"one\ntwo\nthree"
    assert place.storage.read_bytes(uri, 4, 3) == b"two"
    with place.storage.open(uri) as stream:
        assert list(stream) == [b"one\n", b"two\n", b"three"]


def test_an_empty_file_can_be_read(place: Place) -> None:
    place.storage.write_bytes(place.uri("empty"), b"")
    assert place.storage.read_bytes(place.uri("empty")) == b""
    with place.storage.open(place.uri("empty")) as stream:
        assert stream.read() == b""


def test_wildcards_match_within_one_folder_and_come_sorted(place: Place) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.json", "deep/d.jsonl", "[x].jsonl"):
        place.storage.write_bytes(place.uri("data", name), b"{}")
    assert place.storage.list(place.uri("data", "*.jsonl")) == [
        place.uri("data", name) for name in ("[x].jsonl", "a.jsonl", "b.jsonl")
    ]
    assert place.storage.list(place.uri("data", "?.json")) == [place.uri("data", "c.json")]
    assert place.storage.list(place.uri("*", "deep", "*.jsonl")) == [place.uri("data", "deep", "d.jsonl")]
    assert place.storage.list(place.uri("data", "none-*.jsonl")) == []


def test_two_stars_match_any_folders_and_none(place: Place) -> None:
    names = ("a.jsonl", "deep/b.jsonl", "deep/er/c.jsonl", "deep/er/c.json")
    for name in names:
        place.storage.write_bytes(place.uri("data", name), b"{}")
    assert place.storage.list(place.uri("data", "**", "*.jsonl")) == [place.uri("data", name) for name in names[:3]]
    assert place.storage.list(place.uri("data", "**", "er", "*.jsonl")) == [place.uri("data", "deep/er/c.jsonl")]
    assert place.storage.list(place.uri("data", "de**c.json")) == [place.uri("data", "deep/er/c.json")]


def test_a_conditional_write_never_replaces_a_file(place: Place) -> None:
    uri = place.uri("out", "manifest.json")
    assert place.storage.write_bytes(uri, b"first", if_absent=True)
    assert not place.storage.write_bytes(uri, b"second", if_absent=True)
    assert place.storage.read_bytes(uri) == b"first"
    assert place.storage.write_bytes(uri, b"third")
    assert place.storage.read_bytes(uri) == b"third"


def test_folders_are_listed_downloaded_uploaded_and_removed_whole(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(bytes(range(256)) * 80_000)
    place.storage.upload_file(source, place.uri("model", "weights", "big"))
    place.storage.write_bytes(place.uri("model", "config.json"), b"{}")
    place.storage.write_bytes(place.uri("model-2", "config.json"), b"{}")
    assert place.storage.list_folder(place.uri("model")) == {"config.json": 2, "weights/big": 256 * 80_000}
    place.storage.download_folder(place.uri("model"), tmp_path / "copy")
    assert (tmp_path / "copy" / "weights" / "big").read_bytes() == source.read_bytes()
    place.storage.delete_prefix(place.uri("model"))
    assert place.storage.list_folder(place.uri("model")) == {}
    assert place.storage.exists(place.uri("model-2", "config.json"))
    place.storage.delete_prefix(place.uri("model"))


def test_only_wanted_files_are_downloaded(place: Place, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        place.storage.write_bytes(place.uri("model", name), b"{}")
    place.storage.download_folder(place.uri("model"), tmp_path / "copy", lambda path: path.endswith(".json"))
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("model", FailureReason.MODEL_NOT_FOUND),
        ("data", FailureReason.DATASET_NOT_FOUND),
        ("out", FailureReason.OUTPUT_NOT_WRITABLE),
    ],
)
def test_a_missing_file_is_called_by_what_it_was_for(place: Place, folder: str, reason: FailureReason) -> None:
    with pytest.raises(TrainerFailure, match=place.uri(folder, "gone")) as caught:
        place.storage.read_bytes(place.uri(folder, "gone"))
    assert caught.value.reason is reason


def test_a_file_is_read_in_ranges_whose_connections_may_break(s3_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import IncompleteReadError
    from botocore.response import StreamingBody

    monkeypatch.setattr(s3_module, "READ_BYTES", 1000)
    lines = [b"%d\n" % number for number in range(2000)]
    s3_place.storage.write_bytes(s3_place.uri("data", "x.jsonl"), b"".join(lines))
    read, breaks = StreamingBody.read, iter([False, True, True, False, True])

    def breaking(self: Any, amount: int | None = None) -> bytes:
        if next(breaks, False):
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
        found: bytes = read(self, amount)
        return found

    monkeypatch.setattr(StreamingBody, "read", breaking)
    with s3_place.storage.open(s3_place.uri("data", "x.jsonl")) as stream:
        assert list(stream) == lines
    assert next(breaks, None) is None


def test_a_file_replaced_while_it_is_read_is_noticed(s3_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "READ_BYTES", 100)
    uri = s3_place.uri("data", "x.jsonl")
    s3_place.storage.write_bytes(uri, b"one\n" * 100)

    def read_while_it_is_replaced() -> None:
        with s3_place.storage.open(uri) as stream:
            stream.readline()
            s3_place.storage.write_bytes(uri, b"two\n" * 100)
            stream.read()

    with pytest.raises(TrainerFailure, match="PreconditionFailed"):
        read_while_it_is_replaced()


def test_a_bucket_that_is_in_no_storage_is_named_with_the_patterns(s3_place: Place) -> None:
    storage = s3_place.open(buckets="acme-*")
    with pytest.raises(
        TrainerFailure,
        match=r"bucket test-.* is in no storage of .* The buckets of the profile are acme-\*\. Use one of",
    ) as caught:
        storage.exists(s3_place.uri("x"))
    assert caught.value.reason is FailureReason.SPEC_INVALID


def test_the_first_storage_whose_pattern_matches_is_used(s3: Any, s3_place: Place) -> None:
    good = {"buckets": ["test-*"], "endpoint": s3.endpoint, "credentialsSecretName": "owner"}
    bad = {"buckets": ["*"], "endpoint": "http://127.0.0.1:1", "credentialsSecretName": "owner"}
    storage = open_storage(bundle(s3_place.folder, [good, bad], JOB), s3.secrets_dir)
    assert storage.write_bytes(s3_place.uri("x"), b"1")


def test_a_missing_secret_is_named_with_its_keys_and_namespace(s3_place: Place) -> None:
    with pytest.raises(
        TrainerFailure,
        match="Secret nobody in namespace team with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ) as caught:
        s3_place.open("nobody").exists(s3_place.uri("x"))
    assert caught.value.reason is FailureReason.STORAGE_ACCESS_DENIED


@pytest.mark.parametrize("uri", ["gs://bucket/rows.jsonl", "az+x://a/b", "S3://bucket/rows.jsonl"])
def test_a_uri_that_only_a_later_trainer_knows_is_no_path(local_place: Place, uri: str) -> None:
    """Its results would be lost with the pod."""
    for call in (local_place.storage.size, lambda uri: local_place.storage.write_bytes(uri, b"1")):
        with pytest.raises(TrainerFailure, match="the trainer is older than the operator") as caught:
            call(uri)
        assert caught.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.parametrize("folder", ["data", "model", "out"])
def test_keys_the_service_does_not_know_are_denied_wherever_they_are_used(s3_place: Place, folder: str) -> None:
    s3_place.storage.write_bytes(s3_place.uri(folder, "x.jsonl"), b"{}")
    with pytest.raises(TrainerFailure, match="Secret wrong") as caught:
        s3_place.open("wrong").read_bytes(s3_place.uri(folder, "x.jsonl"))
    assert caught.value.reason is FailureReason.STORAGE_ACCESS_DENIED


def test_keys_that_may_only_read_cannot_write_the_output(s3_place: Place) -> None:
    reader = s3_place.open("reader")
    s3_place.storage.write_bytes(s3_place.uri("data", "x"), b"1")
    assert reader.read_bytes(s3_place.uri("data", "x")) == b"1"
    with pytest.raises(TrainerFailure, match=r"does not allow .* to write .*AccessDenied") as caught:
        reader.write_bytes(s3_place.uri("out", "x"), b"1")
    assert caught.value.reason is FailureReason.OUTPUT_NOT_WRITABLE


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("s3://test-no-such-bucket/model", FailureReason.MODEL_NOT_FOUND),
        ("s3://test-no-such-bucket/data", FailureReason.DATASET_NOT_FOUND),
        ("s3://test-no-such-bucket/out", FailureReason.OUTPUT_NOT_WRITABLE),
    ],
)
def test_a_missing_bucket_is_named(s3: Any, folder: str, reason: FailureReason) -> None:
    storages = [{"buckets": ["test-*"], "endpoint": s3.endpoint, "credentialsSecretName": "owner"}]
    storage = open_storage(bundle("s3://test-no-such-bucket", storages, JOB), s3.secrets_dir)
    for call in (
        lambda: storage.read_bytes(join(folder, "x")),
        lambda: storage.list(join(folder, "*.jsonl")),
        lambda: storage.write_bytes(join(folder, "x"), b""),
        lambda: storage.exists(join(folder, "x")),
    ):
        with pytest.raises(TrainerFailure, match="test-no-such-bucket") as caught:
            call()
        assert caught.value.reason is reason


def test_a_service_that_does_not_answer_is_unavailable_within_a_minute(s3_place: Place) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(TrainerFailure, match=endpoint) as caught:
            s3_place.open(endpoint=endpoint).read_bytes(s3_place.uri("data", "x"))
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_a_write_that_fails_leaves_no_half_file(local_place: Place, tmp_path: Path) -> None:
    local_place.storage.write_bytes(local_place.uri("out", "x"), b"1", if_absent=True)
    local_place.storage.write_bytes(local_place.uri("out", "x"), b"2", if_absent=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


def test_outside_kubernetes_a_storage_without_mounted_secret_uses_the_usual_credentials(
    s3: Any, s3_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "owner")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "owner-key")
    storages = [{"buckets": ["*"], "endpoint": s3.endpoint, "credentialsSecretName": "nobody"}]
    assert open_storage(bundle(s3_place.folder, storages), s3.secrets_dir).write_bytes(s3_place.uri("x"), b"1")


def test_each_object_of_a_large_folder_is_a_sign_of_progress(place: Place) -> None:
    for number in range(5):
        place.storage.write_bytes(place.uri("many", str(number)), b"x")
    signs = []
    for work in (
        lambda: place.storage.list_folder(place.uri("many")),
        lambda: place.storage.list(place.uri("many", "*")),
        lambda: place.storage.delete_prefix(place.uri("many")),
    ):
        before = beats()
        work()
        signs.append(beats() - before)
    assert min(signs) > 5
    assert signs[2] > 10, "listed, and then deleted"


def test_only_the_reads_of_an_open_file_may_be_quiet(place: Place) -> None:
    """Other work inside, such as the tokenizing of rows, must not hang for as long as a storage may."""
    place.storage.write_bytes(place.uri("rows.jsonl"), b"row")
    with place.storage.open(place.uri("rows.jsonl")) as stream:
        assert stream.read() == b"row"
        assert patience(None) == 300


class GivenUp(Exception):  # noqa: N818 - not an error
    """The upload is no longer needed."""


@pytest.mark.parametrize("large", [False, True])
def test_a_stream_of_any_size_arrives_unchanged(s3_place: Place, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    data, sent, threads = random.Random(0).randbytes(50_000_000), [], set()
    monkeypatch.setattr(s3_module, "LARGE_BYTES", len(data) + (not large))

    def advance(size: int) -> None:
        sent.append(size)
        threads.add(threading.get_ident())

    s3_place.storage.send(lambda: io.BytesIO(data), s3_place.uri("out", "weights"), advance)
    assert s3_place.storage.read_bytes(s3_place.uri("out", "weights")) == data
    assert sum(sent) == len(data)
    assert (len(threads) > 1) is large, "several connections, or only the calling thread"


@pytest.mark.parametrize("large", [False, True])
def test_an_upload_that_is_given_up_leaves_nothing(
    s3: Any, s3_place: Place, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(s3_module, "LARGE_BYTES", 0 if large else 1 << 40)
    sent = [0]

    def advance(size: int) -> None:
        sent[0] += size
        if sent[0] > 10_000_000:
            raise GivenUp

    with pytest.raises(GivenUp):
        s3_place.storage.send(lambda: io.BytesIO(bytes(50_000_000)), s3_place.uri("out", "weights"), advance)
    assert not s3_place.storage.exists(s3_place.uri("out", "weights"))
    bucket = s3_place.folder.removeprefix("s3://")
    assert not s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_a_file_is_copied_whole_over_another_one(place: Place) -> None:
    place.storage.write_bytes(place.uri("out", ".work", "0123", "a"), b"new")
    place.storage.write_bytes(place.uri("out", "b"), b"old")
    place.storage.copy(place.uri("out", ".work", "0123", "a"), place.uri("out", "b"))
    assert place.storage.read_bytes(place.uri("out", "b")) == b"new"
    with pytest.raises(TrainerFailure):
        place.storage.copy(place.uri("out", ".work", "0123", "gone"), place.uri("out", "b"))
