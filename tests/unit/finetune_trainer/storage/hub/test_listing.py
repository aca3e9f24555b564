"""The commit and the files of a repository: pages of a list, pages that fail, and permission to read the files."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.base.model_files import pin, require_unchanged
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.hub import requests as hub_requests
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from tests.integration.hub_server.protocol import PAGE, SIBLINGS
from tests.integration.hub_server.server import HubServer, running_hub

MODEL, ROWS = "hf://acme/base", "hf://datasets/acme/rows"
SHARDS = {f"data/part-{number:02}.jsonl": b"%d\n" % number for number in range(3 * PAGE)}
"""More files than a page, and more than the hub names together with the commit."""
PAGES = 4
"""Pages of a list with SHARDS, the folder data and README.md."""
WEIGHTS = {f"model-{number:05}-of-00020.safetensors": b"weights %d" % number for number in range(1, 21)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(hub_requests, "FIRST_PAUSE_SECONDS", 0.001)
    with running_hub() as server:
        server.commit("acme/base", WEIGHTS | {"config.json": b"{}", "chat_template.jinja": b""})
        server.commit("datasets/acme/rows", SHARDS | {"README.md": b"about"})
        assert SIBLINGS < PAGE < len(SHARDS)
        yield server


@pytest.fixture
def storage(server: HubServer, tmp_path: Path) -> JobStorage:
    return storage_of(server, tmp_path)


def storage_of(server: HubServer, tmp_path: Path) -> JobStorage:
    """The storage of a job in a pod."""
    bundle = {
        "job": {"namespace": "team", "name": "tickets", "uid": "0123"},
        "spec": {
            "model": {"uri": MODEL},
            "dataset": {"train": [{"uri": f"{ROWS}/data/*.jsonl"}]},
            "output": {"uri": "s3://results/tickets"},
        },
        "hub": {"endpoint": server.endpoint},
    }
    return open_storage(Bundle.model_validate(bundle), hub_dir=tmp_path / "hub")


def requests_of(server: HubServer, kind: str) -> int:
    """How often the hub got a request of this kind: revision, tree or resolve."""
    return sum(count for path, count in server.paths("hub").items() if f"/{kind}/" in path)


def failure(storage: JobStorage) -> TrainerFailure:
    with pytest.raises(TrainerFailure) as raised:
        storage.list(f"{ROWS}/data/*.jsonl")
    return raised.value


def test_every_file_of_a_large_data_set_is_found(server: HubServer, storage: JobStorage) -> None:
    assert storage.list(f"{ROWS}/data/*.jsonl") == [f"{ROWS}/{path}" for path in SHARDS]
    assert storage.list_folder(ROWS).keys() == {*SHARDS, "README.md"}, "and no folder"
    assert storage.list_folder(f"{ROWS}/data") == {path.removeprefix("data/"): len(SHARDS[path]) for path in SHARDS}
    assert (requests_of(server, "revision"), requests_of(server, "tree")) == (1, PAGES)


def test_a_file_that_is_not_named_together_with_the_commit_is_read(storage: JobStorage) -> None:
    last = max(SHARDS)
    assert storage.read_bytes(f"{ROWS}/{last}") == SHARDS[last]


def test_a_pinned_commit_is_not_resolved_again(server: HubServer, tmp_path: Path) -> None:
    storage = storage_of(server, tmp_path)
    storage.pin({ROWS: server.repositories["datasets/acme/rows"].refs["main"]})
    assert len(storage.list(f"{ROWS}/data/*.jsonl")) == len(SHARDS)
    assert (requests_of(server, "revision"), requests_of(server, "tree")) == (0, PAGES)


@pytest.mark.parametrize("fault", ["broken_pages", "cut_pages"])
def test_only_the_page_that_failed_is_requested_again(server: HubServer, storage: JobStorage, fault: str) -> None:
    setattr(server.faults, fault, 2)
    assert storage.list(f"{ROWS}/data/*.jsonl") == [f"{ROWS}/{path}" for path in SHARDS]
    assert requests_of(server, "tree") == PAGES + 2


def test_a_list_of_which_a_page_stays_away_is_not_used(server: HubServer, storage: JobStorage) -> None:
    server.faults.broken_pages = hub_requests.ATTEMPTS
    failed = failure(storage)
    assert failed.reason is FailureReason.STORAGE_UNAVAILABLE
    assert "status 503" in failed.message
    assert len(storage.list(f"{ROWS}/data/*.jsonl")) == len(SHARDS)


def test_the_next_page_is_requested_from_the_hub_of_the_profile(server: HubServer, storage: JobStorage) -> None:
    server.linked = "http://upstream.invalid"
    assert len(storage.list(f"{ROWS}/data/*.jsonl")) == len(SHARDS)


@pytest.mark.parametrize(
    ("fault", "value"),
    [
        ("endless", True),
        ("unlisted", True),
        ("list", "<html>log in</html>"),
        ("list", "{}"),
        ("list", "[1]"),
        ("list", json.dumps([{"type": "file", "path": "a.jsonl"}])),
        ("list", json.dumps([{"type": "file", "path": "a.jsonl", "size": None, "oid": "0"}])),
    ],
)
def test_a_list_that_is_not_that_of_a_hub_is_told(
    server: HubServer, storage: JobStorage, fault: str, value: object
) -> None:
    setattr(server.faults, fault, value)
    failed = failure(storage)
    assert failed.reason is FailureReason.STORAGE_UNAVAILABLE
    assert f"The answer of {server.endpoint} for {ROWS} is not that of a hub." in failed.message


def test_one_byte_of_one_file_shows_that_a_repository_can_be_read(server: HubServer, storage: JobStorage) -> None:
    pins = pin(storage, MODEL)
    require_unchanged(storage, MODEL, pins)
    assert len(pins) == len(WEIGHTS) + 2
    assert requests_of(server, "resolve") == 1
    assert storage.identity(f"{ROWS}/{min(SHARDS)}")
    assert requests_of(server, "resolve") == 2, "another repository may be gated on its own"


def test_threads_that_need_the_same_permission_request_it_once(server: HubServer, storage: JobStorage) -> None:
    storage.list_folder(MODEL)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(storage.identity, [f"{MODEL}/{path}" for path in WEIGHTS]))) == len(WEIGHTS)
    assert requests_of(server, "resolve") == 1


def test_every_file_of_a_gated_repository_is_refused(server: HubServer, storage: JobStorage) -> None:
    """An empty file shows nothing, and a refusal is not remembered as a permission."""
    server.repositories["acme/base"].gated = True
    assert storage.identity(f"{MODEL}/chat_template.jinja")
    for path in [*WEIGHTS, "config.json"]:
        with pytest.raises(TrainerFailure, match="gated") as raised:
            storage.identity(f"{MODEL}/{path}")
        assert raised.value.reason is FailureReason.MODEL_ACCESS_DENIED
    server.repositories["acme/base"].gated = False
    assert storage.identity(f"{MODEL}/config.json")
