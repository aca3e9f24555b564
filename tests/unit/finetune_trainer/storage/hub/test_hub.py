"""Models and data sets of a hub, read with the real client from a server with the hub's protocol."""

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.hub import files as hub
from finetune_trainer.storage.hub import requests as hub_requests
from finetune_trainer.storage.hub.requests import Location, read_range
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from tests.integration.hub_server.server import HubServer, running_hub

MODEL = "hf://acme/base"
ROWS = "hf://datasets/acme/rows"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 5000,
    "pytorch_model.bin": b"a pickle",
    "odd name+%41.txt": b"percent",
    "empty.txt": b"",
}
TOKEN = "hf_of_the_tests"
MIB = 2**20


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(hub_requests.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hub_requests, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(hub, "SMALLEST_PART", 300_000)
    with running_hub() as server:
        server.commit("acme/base", FILES)
        server.commit("datasets/acme/rows", {"data/a.jsonl": b"1\n", "data/deep/b.jsonl": b"2\n", "c.csv": b"x\n1\n"})
        yield server


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def storage(server: HubServer, tokens: Path) -> JobStorage:
    return storage_of(server, tokens)


def storage_of(server: HubServer, tokens: Path, model: dict[str, Any] | None = None, **hub_settings: Any) -> JobStorage:
    """The storage of a job in a pod."""
    bundle = {
        "job": {"namespace": "team", "name": "tickets", "uid": "0123"},
        "spec": {
            "model": {"uri": MODEL} | (model or {}),
            "dataset": {"train": [{"uri": f"{ROWS}/data/*.jsonl"}]},
            "output": {"uri": "s3://results/tickets"},
        },
        "hub": {"endpoint": server.endpoint} | hub_settings,
    }
    return open_storage(Bundle.model_validate(bundle), hub_dir=tokens)


def logged_in(tokens: Path, token: str = TOKEN) -> None:
    tokens.mkdir(exist_ok=True)
    (tokens / names.HUB_TOKEN).write_text(f"{token}\n")


def failure(storage: JobStorage, uri: str = f"{MODEL}/model.safetensors") -> TrainerFailure:
    with pytest.raises(TrainerFailure) as raised:
        storage.read_bytes(uri)
    return raised.value


def test_the_server_speaks_the_protocol_as_huggingface_hub_itself_uses_it(server: HubServer, tmp_path: Path) -> None:
    found = snapshot_download("acme/base", endpoint=server.endpoint, cache_dir=tmp_path, token=False)
    assert {path.name: path.read_bytes() for path in Path(found).iterdir()} == FILES


def test_files_are_listed_with_their_sizes(storage: JobStorage) -> None:
    assert storage.list_folder(MODEL) == {path: len(data) for path, data in FILES.items()}
    assert storage.list_folder(f"{ROWS}/data") == {"a.jsonl": 2, "deep/b.jsonl": 2}


def test_wildcards_match_in_a_data_set(storage: JobStorage) -> None:
    assert storage.list(f"{ROWS}/data/*.jsonl") == [f"{ROWS}/data/a.jsonl"]
    assert storage.list(f"{ROWS}/**/*.jsonl") == [f"{ROWS}/data/a.jsonl", f"{ROWS}/data/deep/b.jsonl"]


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_read_whole_in_part_and_as_a_stream(storage: JobStorage, path: str) -> None:
    uri, data = f"{MODEL}/{path}", FILES[path]
    assert storage.size(uri) == len(data)
    assert storage.read_bytes(uri) == data
    assert storage.read_bytes(uri, 3, 9) == data[3:12]
    with storage.open(uri) as stream:
        stream.seek(5)
        assert stream.read() == data[5:]


def test_the_identity_of_a_file_follows_its_content(server: HubServer, tokens: Path) -> None:
    first = storage_of(server, tokens).identity(f"{MODEL}/config.json")
    server.commit("acme/base", FILES | {"README.md": b"new"})
    assert storage_of(server, tokens).identity(f"{MODEL}/config.json") == first
    server.commit("acme/base", FILES | {"config.json": b"{}"})
    assert storage_of(server, tokens).identity(f"{MODEL}/config.json") != first


def test_the_header_of_the_weights_is_read_without_the_weights(server: HubServer, storage: JobStorage) -> None:
    storage.read_bytes(f"{MODEL}/model.safetensors", 0, 8)
    assert [asked.range for asked in server.asked if asked.server == "storage"] == ["bytes=0-7"]


def test_only_wanted_files_are_downloaded(server: HubServer, storage: JobStorage, tmp_path: Path) -> None:
    storage.download_folder(MODEL, tmp_path / "copy", lambda path: path != "pytorch_model.bin")
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
        path: data for path, data in FILES.items() if path != "pytorch_model.bin"
    }
    assert not any("pytorch_model.bin" in path for path in server.paths("hub"))


def test_a_large_file_arrives_in_parts_at_the_same_time(server: HubServer, storage: JobStorage, tmp_path: Path) -> None:
    storage.download_folder(MODEL, tmp_path / "copy")
    ranges = [asked.range for asked in server.asked if asked.server == "storage"]
    assert sorted(ranges) == sorted(
        f"bytes={start}-{min(start + 300_000, 1_280_000) - 1}" for start in range(0, 1_280_000, 300_000)
    )


def test_a_cut_download_is_resumed_where_it_was_cut(server: HubServer, storage: JobStorage, tmp_path: Path) -> None:
    server.faults.cuts = 3
    storage.download_folder(MODEL, tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    starts = [int((asked.range or "").partition("=")[2].split("-")[0]) for asked in server.asked if asked.range]
    assert any(start % 300_000 for start in starts)


def test_an_expired_signature_is_renewed_at_the_hub(server: HubServer, storage: JobStorage) -> None:
    uri = f"{MODEL}/model.safetensors"
    storage.read_bytes(uri, 0, 8)
    server.faults.expired = 1
    assert storage.read_bytes(uri, 8, 8) == FILES["model.safetensors"][8:16]


def test_parts_whose_signature_expires_at_the_same_time_are_all_renewed(
    server: HubServer, storage: JobStorage, tmp_path: Path
) -> None:
    storage.read_bytes(f"{MODEL}/model.safetensors", 0, 8)
    parts = 5
    server.faults.expired, server.faults.together = parts, Barrier(parts)
    storage.download_folder(MODEL, tmp_path / "copy", lambda path: path == "model.safetensors")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_storage_that_refuses_every_signature_denies_access(server: HubServer, storage: JobStorage) -> None:
    storage.read_bytes(f"{MODEL}/model.safetensors", 0, 8)
    server.faults.expired = 1000
    assert failure(storage).reason is FailureReason.MODEL_ACCESS_DENIED


def test_a_signature_that_other_threads_renew_in_vain_is_given_up(server: HubServer) -> None:
    location = Location(f"{server.endpoint}/acme/base/resolve/main/model.safetensors", dict)
    server.faults.expired = 1000

    def put(position: int, data: bytes) -> None:
        """Stands for another thread that got a new address from the hub before each request."""
        location.arrived(f"{server.signed('0')}&of={len(server.asked)}")

    with pytest.raises(HfHubHTTPError, match="403"):
        read_range(location, 0, 8, put)
    assert [asked.server for asked in server.asked] == ["storage"] * (1 + hub_requests.ATTEMPTS)


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_bytes_that_do_not_match_the_digest_of_the_hub_are_not_used(
    server: HubServer, storage: JobStorage, tmp_path: Path, path: str
) -> None:
    server.flip("acme/base", path)
    with pytest.raises(TrainerFailure, match="does not match the digest") as raised:
        storage.download_folder(MODEL, tmp_path / "copy", lambda each: each == path)
    assert raised.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_a_branch_is_resolved_once_and_read_at_that_commit(server: HubServer, tokens: Path) -> None:
    first = server.repositories["acme/base"].refs["main"]
    storage = storage_of(server, tokens)
    assert storage.size(f"{MODEL}/config.json")
    server.commit("acme/base", {"config.json": b"moved"})
    assert storage.read_bytes(f"{MODEL}/config.json") == FILES["config.json"]
    assert storage.commits() == {MODEL: first}


def test_a_pinned_commit_is_read_although_the_branch_has_moved(server: HubServer, tokens: Path) -> None:
    first = server.repositories["acme/base"].refs["main"]
    server.commit("acme/base", {"config.json": b"moved"})
    storage = storage_of(server, tokens)
    storage.pin({MODEL: first})
    assert storage.read_bytes(f"{MODEL}/config.json") == FILES["config.json"]


def test_a_commit_that_the_hub_no_longer_has_is_told(server: HubServer, tokens: Path) -> None:
    storage = storage_of(server, tokens)
    storage.pin({MODEL: "0" * 40})
    failed = failure(storage)
    assert failed.reason is FailureReason.MODEL_NOT_FOUND
    assert "has no commit 0000000" in failed.message


@pytest.mark.parametrize("by", ["branch", "tag/1.0", "commit"])
def test_the_revision_is_a_branch_a_tag_or_a_commit(server: HubServer, tokens: Path, by: str) -> None:
    commit = server.commit("acme/base", {"config.json": b"other"}, ref=by)
    server.commit("acme/base", FILES)
    storage = storage_of(server, tokens, {"revision": commit if by == "commit" else by})
    assert storage.read_bytes(f"{MODEL}/config.json") == b"other"
    assert storage.commits() == {MODEL: commit}
    assert storage.exists(f"{ROWS}/data/a.jsonl"), "a data set has its own branch main"


def test_the_token_goes_to_the_hub_and_never_to_its_storage(server: HubServer, tokens: Path) -> None:
    server.repositories["acme/base"].gated = True
    server.tokens = {TOKEN: {"acme/base"}}
    logged_in(tokens)
    assert storage_of(server, tokens).read_bytes(f"{MODEL}/model.safetensors") == FILES["model.safetensors"]
    assert {(asked.server, asked.token) for asked in server.asked} == {("hub", TOKEN), ("storage", None)}


def test_a_renewed_token_is_used_from_the_next_request(server: HubServer, tokens: Path) -> None:
    logged_in(tokens, "old")
    server.tokens = {"old": set(), "new": {"acme/base"}}
    storage = storage_of(server, tokens)
    assert storage.exists(f"{MODEL}/config.json")
    server.tokens = {"new": {"acme/base"}}
    logged_in(tokens, "new")
    assert storage.read_bytes(f"{MODEL}/config.json")


REFERENCE = {"tokenSecretRef": {"name": "mine", "key": "hub"}}


@pytest.mark.parametrize(
    ("about", "token", "uri", "model", "reason", "said"),
    [
        ({"gated": True}, None, None, {}, "ModelAccessDenied", "gated. The job has no token. Accept its conditions"),
        ({"gated": True}, None, None, REFERENCE, "ModelAccessDenied", "Secret mine in namespace team with the key hub"),
        ({"gated": True}, TOKEN, None, REFERENCE, "ModelAccessDenied", "the account of the token in Secret mine, key"),
        ({}, "wrong", None, REFERENCE, "ModelAccessDenied", "does not accept the token in Secret mine, key hub"),
        ({"private": True}, None, None, {}, "ModelNotFound", "does not exist on http"),
        ({"private": True}, TOKEN, None, {}, "ModelNotFound", "may not see it. Correct spec.model.uri."),
        ({}, None, None, {"revision": "v9"}, "ModelNotFound", "hf://acme/base has no revision v9. Set spec.model.rev"),
        ({}, None, f"{MODEL}/none.json", {}, "ModelNotFound", "There is no hf://acme/base/none.json at revision main"),
        ({}, None, "hf://datasets/acme/none/a.csv", {}, "DatasetNotFound", "hf://datasets/acme/none does not exist"),
        ({}, None, f"{ROWS}/none.csv", {}, "DatasetNotFound", "There is no hf://datasets/acme/rows/none.csv"),
        ({}, None, f"{ROWS}/data/no.jsonl", {}, "DatasetNotFound", "Correct the path in spec.dataset.train[0].uri."),
        ({}, "wrong", f"{ROWS}/c.csv", {}, "StorageAccessDenied", "does not accept the token in Secret shared, key HF"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(
    server: HubServer,
    tokens: Path,
    about: dict[str, bool],
    token: str | None,
    uri: str | None,
    model: dict[str, Any],
    reason: str,
    said: str,
) -> None:
    for name, value in about.items():
        setattr(server.repositories["acme/base"], name, value)
    server.tokens = {TOKEN: set()}
    if token:
        logged_in(tokens, token)
    shared = {"tokenSecretName": "shared"} if token and not model else {}
    failed = failure(storage_of(server, tokens, model, **shared), uri or f"{MODEL}/model.safetensors")
    assert failed.reason == reason
    assert said in failed.message
    assert failed.remedy


@pytest.mark.parametrize("token", ["", "two\nlines", "ünï", "with space"])
def test_a_token_that_cannot_be_sent_is_told_as_missing(server: HubServer, tokens: Path, token: str) -> None:
    server.repositories["acme/base"].gated = True
    logged_in(tokens, token)
    failed = failure(storage_of(server, tokens, REFERENCE))
    assert failed.reason is FailureReason.MODEL_ACCESS_DENIED
    assert "is missing, empty or not plain text" in failed.message


def test_a_gated_data_set_names_the_page_with_its_conditions(server: HubServer, tokens: Path) -> None:
    server.repositories["datasets/acme/rows"].gated = True
    failed = failure(storage_of(server, tokens), f"{ROWS}/c.csv")
    assert failed.reason is FailureReason.STORAGE_ACCESS_DENIED
    assert f"{server.endpoint}/datasets/acme/rows" in failed.message


def test_a_busy_hub_is_asked_again_after_the_time_that_it_names(
    server: HubServer, storage: JobStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.busy, server.faults.retry_after = 2, 1
    assert storage.read_bytes(f"{MODEL}/config.json") == FILES["config.json"]
    assert "The next request is in 1 s." in capsys.readouterr().out


def test_a_hub_that_asks_for_a_long_pause_is_unavailable(server: HubServer, storage: JobStorage) -> None:
    server.faults.busy, server.faults.retry_after = 1, 300
    failed = failure(storage)
    assert failed.reason is FailureReason.STORAGE_UNAVAILABLE
    assert "status 429 and asks to wait 300 s" in failed.message


def test_a_hub_that_fails_for_a_moment_is_asked_again(server: HubServer, storage: JobStorage) -> None:
    server.faults.broken = 3
    assert storage.read_bytes(f"{MODEL}/config.json") == FILES["config.json"]


def test_a_hub_that_stays_down_is_unavailable(server: HubServer, storage: JobStorage) -> None:
    server.close()
    failed = failure(storage)
    assert failed.reason is FailureReason.STORAGE_UNAVAILABLE
    assert server.endpoint in failed.message


@pytest.mark.parametrize("page", ["<html>log in</html>", "[]", "{}", json.dumps({"id": "a/b", "siblings": None})])
def test_an_answer_that_is_not_that_of_a_hub_is_told(server: HubServer, storage: JobStorage, page: str) -> None:
    server.faults.page = page
    failed = failure(storage)
    assert failed.reason is FailureReason.STORAGE_UNAVAILABLE
    assert "is not that of a hub" in failed.message


@pytest.mark.parametrize("fault", ["whole", "silent"])
def test_a_hub_without_ranges_is_told(server: HubServer, storage: JobStorage, fault: str) -> None:
    setattr(server.faults, fault, True)
    assert "does not support range requests" in failure(storage).message


def test_a_repository_that_the_profile_does_not_allow_is_not_requested(server: HubServer, tokens: Path) -> None:
    failed = failure(storage_of(server, tokens, allowed=["other/*", "datasets/*/*"]))
    assert failed.reason is FailureReason.SPEC_INVALID
    assert server.asked == []


def test_a_name_that_no_repository_can_have_is_told(server: HubServer, tokens: Path) -> None:
    failed = failure(storage_of(server, tokens), "hf://datasets/acme/a--b/rows.csv")
    assert failed.reason is FailureReason.DATASET_NOT_FOUND
    assert "is not a name" in failed.message


@pytest.mark.parametrize(
    ("size", "part"),
    [(0, 8), (100 * MIB, 8), (512 * MIB, 16), (5000 * MIB, 32)],
    ids=["empty", "small", "middle", "large"],
)
def test_each_connection_gets_four_ranges_of_a_file_unless_they_are_too_small_or_too_large(
    size: int, part: int
) -> None:
    assert hub.part_bytes(size) == part * MIB
