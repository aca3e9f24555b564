"""Keys that are rotated while they are used, on a real S3 server with signatures enforced."""

import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from finetune_trainer.storage.s3 import files as s3_module
from finetune_trainer.storage.s3 import mounted_keys
from finetune_trainer.storage.s3.mounted_keys import Keys, read_keys

PART = 8 * 1024 * 1024
"""Bytes of a part of boto3's multipart upload. Ten parts are under way at once."""


class Secret:
    """A Secret as the kubelet mounts it: each version in a folder of its own, and ..data points at the newest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            (folder / name).symlink_to(Path("..data") / name)

    def mount(self, **values: str) -> None:
        link = self.folder / "..data"
        earlier = link.resolve() if link.is_symlink() else None
        version = self.folder / f"..{uuid.uuid4().hex}"
        version.mkdir()
        for name, value in values.items():
            (version / name).write_text(value)
        (self.folder / "..data_tmp").symlink_to(version.name)
        (self.folder / "..data_tmp").replace(link)
        if earlier:
            shutil.rmtree(earlier)


class Rotated:
    """An identity of its own, whose keys are mounted and can be rotated."""

    def __init__(self, s3: Any, folder: Path) -> None:
        self.s3, self.name, self.version = s3, f"rotated-{uuid.uuid4().hex[:8]}", 0
        self.secrets_dir, self.secret = folder, Secret(folder / "keys")
        self.bucket = s3.bucket(f"test-{uuid.uuid4().hex[:12]}")
        self.uri = f"s3://{self.bucket}/out/file"
        self.revoke()
        self.mount()

    def revoke(self) -> None:
        """The service knows new keys only; the Secret still holds the old ones."""
        self.version += 1
        self.s3.replace_keys(self.name, f"{self.name}-{self.version}", f"secret-{self.version}")

    def mount(self) -> None:
        """The newest keys are mounted."""
        self.secret.mount(
            AWS_ACCESS_KEY_ID=f"{self.name}-{self.version}", AWS_SECRET_ACCESS_KEY=f"secret-{self.version}"
        )

    def rotate(self) -> None:
        self.revoke()
        self.mount()

    def storage(self) -> JobStorage:
        spec = {
            "model": {"uri": f"s3://{self.bucket}/model"},
            "dataset": {"train": [{"uri": f"s3://{self.bucket}/data/*.jsonl"}]},
            "output": {"uri": f"s3://{self.bucket}/out"},
        }
        storages = [{"buckets": ["test-*"], "endpoint": self.s3.endpoint, "credentialsSecretName": "keys"}]
        job = {"namespace": "team", "name": "tickets", "uid": "0123"}
        return open_storage(
            Bundle.model_validate({"job": job, "spec": spec, "storages": storages}), secrets_dir=self.secrets_dir
        )


@pytest.fixture
def rotated(s3: Any, tmp_path: Path) -> Rotated:
    return Rotated(s3, tmp_path / "secrets")


def once_after(amount: int, action: Callable[[], None]) -> Callable[[int], None]:
    """A counter of bytes, called from any thread, that takes `action` once when `amount` is reached."""
    lock, done = threading.Lock(), [0, 0]

    def advance(more: int) -> None:
        with lock:
            done[0] += more
            if done[0] >= amount and not done[1]:
                done[1] = 1
                action()

    return advance


def write_parts(path: Path, parts: int) -> Path:
    with path.open("wb") as file:
        for number in range(parts):
            file.write(bytes([number]) * PART)
    return path


def test_keys_rotated_between_two_requests_are_used_by_the_second(rotated: Rotated) -> None:
    storage = rotated.storage()
    assert storage.write_bytes(rotated.uri, b"one")
    rotated.rotate()
    assert storage.write_bytes(rotated.uri, b"two")
    rotated.rotate()
    assert storage.read_bytes(rotated.uri) == b"two"
    assert storage.list(f"s3://{rotated.bucket}/out/*") == [rotated.uri]


def test_keys_rotated_in_the_middle_of_an_upload_of_many_parts_do_not_end_it(rotated: Rotated, tmp_path: Path) -> None:
    source = write_parts(tmp_path / "weights", 14)
    rotated.storage()._stores.of(rotated.uri).upload(source, rotated.uri, once_after(3 * PART, rotated.rotate))
    assert rotated.version == 2
    copy = tmp_path / "copy"
    rotated.s3.client().download_file(rotated.bucket, "out/file", str(copy))
    assert copy.read_bytes() == source.read_bytes()


def test_keys_rotated_in_the_middle_of_a_download_of_many_parts_do_not_end_it(rotated: Rotated, tmp_path: Path) -> None:
    source = write_parts(tmp_path / "weights", 14)
    rotated.s3.client().upload_file(str(source), rotated.bucket, "out/file")
    copy = tmp_path / "copy"
    rotated.storage()._stores.of(rotated.uri).download(rotated.uri, copy, once_after(3 * PART, rotated.rotate))
    assert rotated.version == 2
    assert copy.read_bytes() == source.read_bytes()


def test_keys_rotated_between_the_ranges_of_a_file_do_not_end_its_reading(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "READ_BYTES", 100)
    lines = [b"%03d\n" % number for number in range(100)]
    storage = rotated.storage()
    storage.write_bytes(rotated.uri, b"".join(lines))
    found = []
    with storage.open(rotated.uri) as stream:
        for line in stream:
            found.append(line)
            if len(found) in (10, 60):
                rotated.rotate()
    assert found == lines


@pytest.mark.parametrize("request_of", ["write", "read", "size", "list", "download", "upload"])
def test_keys_revoked_before_the_new_ones_are_mounted_are_waited_for(
    rotated: Rotated, request_of: str, tmp_path: Path
) -> None:
    storage = rotated.storage()
    storage.write_bytes(rotated.uri, b"content")
    (tmp_path / "file").write_bytes(b"content")
    asks: dict[str, Callable[[], Any]] = {
        "write": lambda: storage.write_bytes(rotated.uri, b"content"),
        "read": lambda: storage.read_bytes(rotated.uri),
        "size": lambda: storage.size(rotated.uri),
        "list": lambda: storage.list(f"s3://{rotated.bucket}/out/*"),
        "download": lambda: storage.download_folder(f"s3://{rotated.bucket}/out", tmp_path / "copy"),
        "upload": lambda: storage.upload_file(tmp_path / "file", rotated.uri),
    }
    rotated.revoke()
    kubelet = threading.Timer(0.5, rotated.mount)
    kubelet.start()
    try:
        asks[request_of]()
    finally:
        kubelet.join()
    assert storage.read_bytes(rotated.uri) == b"content"


def test_half_a_rotation_is_waited_out(rotated: Rotated) -> None:
    """A person who changes the Secret key by key: for a while the new id is mounted with the old secret."""
    storage = rotated.storage()
    storage.write_bytes(rotated.uri, b"one")
    rotated.revoke()
    rotated.secret.mount(AWS_ACCESS_KEY_ID=f"{rotated.name}-2", AWS_SECRET_ACCESS_KEY="secret-1")
    kubelet = threading.Timer(0.5, rotated.mount)
    kubelet.start()
    try:
        assert storage.write_bytes(rotated.uri, b"two")
    finally:
        kubelet.join()


def test_keys_that_never_worked_are_refused_at_once(rotated: Rotated) -> None:
    rotated.revoke()
    with pytest.raises(
        TrainerFailure, match=r"does not accept the keys of Secret keys for .* \(InvalidAccessKeyId\)"
    ) as caught:
        rotated.storage().write_bytes(rotated.uri, b"one")
    assert caught.value.reason is FailureReason.STORAGE_ACCESS_DENIED


def test_keys_that_stay_revoked_end_the_job_and_are_waited_for_only_once(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounted_keys, "PATIENCE_SECONDS", 1.5)
    storage = rotated.storage()
    storage.write_bytes(rotated.uri, b"one")
    rotated.revoke()
    with pytest.raises(TrainerFailure, match="InvalidAccessKeyId"):
        storage.write_bytes(rotated.uri, b"two")
    monkeypatch.setattr(mounted_keys, "PATIENCE_SECONDS", 3600)
    with pytest.raises(TrainerFailure, match="InvalidAccessKeyId"):
        storage.write_bytes(rotated.uri, b"two")


def test_a_pod_that_receives_sigterm_does_not_wait_for_new_keys(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = rotated.storage()
    storage.write_bytes(rotated.uri, b"one")
    rotated.revoke()
    monkeypatch.setattr(termination._Stop, "requested", True)
    with pytest.raises(TrainerFailure, match="InvalidAccessKeyId"):
        storage.write_bytes(rotated.uri, b"two")


def test_a_secret_that_is_gone_for_a_moment_leaves_the_keys_that_were_read(rotated: Rotated) -> None:
    storage = rotated.storage()
    storage.write_bytes(rotated.uri, b"one")
    rotated.secret.mount()
    assert storage.read_bytes(rotated.uri) == b"one"


def test_keys_are_read_from_one_version_of_the_secret(tmp_path: Path) -> None:
    secret = Secret(tmp_path / "keys")
    secret.mount(AWS_ACCESS_KEY_ID="id-0", AWS_SECRET_ACCESS_KEY="secret-0", AWS_SESSION_TOKEN="token-0")
    ended = threading.Event()

    def rotate() -> None:
        for number in range(1, 300):
            secret.mount(
                AWS_ACCESS_KEY_ID=f"id-{number}",
                AWS_SECRET_ACCESS_KEY=f"secret-{number}",
                AWS_SESSION_TOKEN=f"token-{number}",
            )
        ended.set()

    thread = threading.Thread(target=rotate)
    thread.start()
    seen = set()
    while not ended.is_set():
        if keys := read_keys(secret.folder):
            number = keys.key_id.removeprefix("id-")
            assert keys == Keys(f"id-{number}", f"secret-{number}", f"token-{number}")
            seen.add(keys)
    thread.join()
    assert len(seen) > 1


@pytest.mark.parametrize("value", ["", " \n", "two\nlines", "clé", "with space", "\x00"])
def test_a_value_that_cannot_be_a_key_is_as_good_as_none(tmp_path: Path, value: str) -> None:
    secret = Secret(tmp_path / "keys")
    secret.mount(AWS_ACCESS_KEY_ID="id", AWS_SECRET_ACCESS_KEY=value)
    assert read_keys(secret.folder) is None


def test_white_space_around_a_key_is_no_part_of_it(tmp_path: Path) -> None:
    secret = Secret(tmp_path / "keys")
    secret.mount(AWS_ACCESS_KEY_ID=" id\n", AWS_SECRET_ACCESS_KEY="a/b+c=\r\n")
    assert read_keys(secret.folder) == Keys("id", "a/b+c=", None)
