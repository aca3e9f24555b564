"""An S3 service whose certificate a private authority has signed: a TLS proxy before a real S3 server."""

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from tests.integration.api_proxy import S3Proxy, on_loopback
from tests.unit.finetune_trainer.storage.test_job_storage import JOB, bundle

CONFIG_MAP = {"configMapName": "storage-ca"}


def signed(folder: Path) -> Path:
    """Makes an authority, ca.crt, and a certificate for this machine, server.crt. Returns the folder."""
    folder.mkdir()
    quiet: dict[str, Any] = {"check": True, "cwd": folder, "capture_output": True}
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
    subprocess.run([*new, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"], **quiet)
    name = ["-subj", "/CN=s3", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"]
    by = ["-CA", "ca.crt", "-CAkey", "ca.key"]
    subprocess.run([*new, *name, *by, "-keyout", "server.key", "-out", "server.crt"], **quiet)
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signed(tmp_path_factory.mktemp("authorities") / "ours")


@pytest.fixture
def endpoint(s3: Any, keys: Path) -> Iterator[str]:
    """Address of the service, with a certificate of the authority."""
    proxy = S3Proxy(s3.endpoint, None, on_loopback, 0, (keys / "server.crt", keys / "server.key"))
    yield proxy.address
    proxy.close()


@pytest.fixture
def mounted(s3: Any, tmp_path: Path) -> Path:
    """The folder that a pod finds mounted, with the keys of the storage and no authority."""
    shutil.copytree(s3.secrets_dir, tmp_path / "storage")
    return tmp_path


@pytest.fixture
def opened(s3: Any, endpoint: str, mounted: Path) -> Callable[..., tuple[JobStorage, str]]:
    def open(ca_bundle: dict[str, str] | None = CONFIG_MAP, job: dict[str, str] | None = JOB) -> tuple[JobStorage, str]:
        bucket = s3.bucket(f"test-{uuid.uuid4().hex[:12]}")
        storage = {"buckets": ["test-*"], "endpoint": endpoint, "credentialsSecretName": "owner"}
        storages = [storage | ({"caBundle": ca_bundle} if ca_bundle else {})]
        return open_storage(bundle(f"s3://{bucket}", storages, job), mounted / "storage"), f"s3://{bucket}/out/file"

    return open


def authority(mounted: Path, source: Path, key: str = "ca.crt") -> None:
    folder = mounted / "authorities" / "storage-ca"
    folder.mkdir(parents=True)
    shutil.copyfile(source, folder / key)


def test_a_service_of_a_private_authority_is_used_with_its_certificate(
    opened: Callable[..., tuple[JobStorage, str]], mounted: Path, keys: Path, tmp_path: Path
) -> None:
    authority(mounted, keys / "ca.crt")
    storage, uri = opened()
    storage.write_bytes(uri, b"content")
    assert storage.read_bytes(uri) == b"content"
    large = tmp_path / "large"
    large.write_bytes(bytes(20_000_000))  # in several parts, by several threads
    storage.upload_file(large, uri)
    assert storage.size(uri) == 20_000_000


def test_the_key_of_the_config_map_can_have_another_name(
    opened: Callable[..., tuple[JobStorage, str]], mounted: Path, keys: Path
) -> None:
    authority(mounted, keys / "ca.crt", "tls-ca-bundle.pem")
    storage, uri = opened(CONFIG_MAP | {"key": "tls-ca-bundle.pem"})
    assert storage.write_bytes(uri, b"content")


@pytest.mark.parametrize("another", [False, True], ids=["no authority", "another authority"])
def test_a_certificate_that_is_not_trusted_is_told_with_what_to_set(
    another: bool, opened: Callable[..., tuple[JobStorage, str]], mounted: Path, tmp_path: Path
) -> None:
    if another:
        authority(mounted, signed(tmp_path / "another") / "ca.crt")
    storage, uri = opened(CONFIG_MAP if another else None)
    with pytest.raises(TrainerFailure) as caught:
        storage.write_bytes(uri, b"")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    assert caught.value.finding.startswith("The certificate of https://127.0.0.1:")
    assert "is not trusted (certificate verify failed: " in caught.value.finding
    assert "Set caBundle of this storage in the FineTuneProfile" in str(caught.value.remedy)


def test_a_missing_config_map_and_one_without_a_certificate_are_told_with_their_names(
    opened: Callable[..., tuple[JobStorage, str]], mounted: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("not a certificate")

    def said() -> TrainerFailure:
        storage, uri = opened()
        with pytest.raises(TrainerFailure) as caught:
            storage.write_bytes(uri, b"")
        assert caught.value.reason is FailureReason.STORAGE_ACCESS_DENIED
        return caught.value

    missing = said()
    assert missing.finding == "The key ca.crt of ConfigMap storage-ca in namespace team is missing."
    assert str(missing.remedy).startswith("Create it with the certificate of the authority of https://127.0.0.1:")
    authority(mounted, tmp_path / "text")
    assert said().finding.endswith("in namespace team contains no certificate in PEM format.")
