"""A second job over the same files takes over the prepared rows, and only then."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.handover import prepared_cache
from finetune_trainer.handover.prepared import Prepared, read_prepared
from finetune_trainer.handover.prepared_cache import LOCAL
from finetune_trainer.handover.prepared_place import Renewal
from finetune_trainer.handover.renewed import RENEWED_AFTER
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.preflight.data import gather as gathering
from finetune_trainer.preflight.data import reuse
from finetune_trainer.preflight.recipe import preflight
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import (
    S3,
    MakeBundle,
    near_copies,
    save_model,
    save_tokenizer,
    sum_rows,
    write_rows,
)
from tests.unit.finetune_trainer.preflight_runs import read, run, with_dataset

TAKEN_OVER = "They are not read again."
DIRTY = [
    *sum_rows(40),
    *sum_rows(3),
    *near_copies(4),
    {"prompt": "Do you?", "completion": "The <|end|> of  it"},
    {"a": 1},
]
DATASET = {"maxInvalidFraction": 0.1, "clean": {"whitespace": "Collapse"}}

Make = Callable[..., Bundle]


@pytest.fixture
def make(make_bundle: MakeBundle, tmp_path: Path) -> Make:
    """Builds bundles of jobs with one cache, and another output for each."""
    number = iter(range(100))

    def bundle(dataset: dict[str, Any] | None = None, rows: Any = DIRTY, **parts: Any) -> Bundle:
        given = {"output": {"uri": str(tmp_path / f"output-{next(number)}")}} | parts
        made = make_bundle(rows=rows, **{"preparedCache": {"uri": str(tmp_path / "cache")}} | given)
        return with_dataset(made, **DATASET | (dataset or {}))

    return bundle


def content(prepared: Prepared) -> dict[str, Any]:
    """Everything that a job is told and that its training reads."""
    sides = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test, **prepared.regression}
    return {
        "rows": {
            side: [
                (row.input_ids.tolist(), row.supervised.tolist(), row.messages, row.place, row.cluster) for row in rows
            ]
            for side, rows in sides.items()
        },
        "preflight": prepared.preflight.model_dump(exclude={"observed_time"}),
        "resolved": prepared.resolved,
        "cleaning": list(prepared.cleaning),
        "answers": prepared.answers,
    }


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*"))


def no_reading(*_: object) -> NoReturn:
    raise AssertionError("the rows were read")


def test_a_second_job_over_the_same_files_gets_the_same_rows_findings_and_advice_without_reading_them(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(make())
    alone = run(make(preparedCache=None))
    monkeypatch.setattr(gathering, "read_rows", no_reading)
    capsys.readouterr()
    second = run(make())
    said = capsys.readouterr().out
    assert content(second) == content(first) == content(alone)
    assert second.preflight.duplicates == 3
    assert second.preflight.invalid == 1
    assert second.preflight.findings
    assert second.cleaning
    assert TAKEN_OVER in said
    assert "The rows are those that job local prepared from the same files." in said.split('"DataValid"')[1]
    assert not list((tmp_path / "output-2").rglob("tokens")), "the rows are not stored twice"


@pytest.mark.parametrize(
    "parts",
    [
        {"training": {"learningRate": 0.5, "epochs": 7, "seed": 3}},
        {"dataset": {"split": {"test": 0.3, "seed": 5}}},
        {"method": {"lora": {"r": 2}}},
        {"evaluation": {"maxRows": 3}},
        {"gpuTypes": [{"name": "h100", "memory": "81559Mi"}]},
    ],
)
def test_settings_that_are_used_later_do_not_matter(
    make: Make, capsys: pytest.CaptureFixture[str], parts: dict[str, Any]
) -> None:
    run(make())
    alone = run(make(**parts, preparedCache=None))
    capsys.readouterr()
    assert content(run(make(**parts))) == content(alone)
    assert TAKEN_OVER in capsys.readouterr().out


def test_another_weight_name_or_model_card_does_not_matter(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(make().spec.model.uri, model)
    first = make(model={"uri": str(model)})
    run(first)
    (source,) = first.spec.dataset.train
    (model / "README.md").write_text("---\nlicense: mit\n---")
    told = source.model_dump(mode="json", by_alias=True, exclude_none=True) | {"name": "mine", "weight": 2.0}
    capsys.readouterr()
    run(make(model={"uri": str(model)}, dataset={"train": [told]}))
    assert TAKEN_OVER in capsys.readouterr().out


@pytest.mark.parametrize(
    "parts",
    [
        {"dataset": {"clean": {"whitespace": "Keep"}}},
        {"dataset": {"deduplicate": {"near": "Drop"}}},
        {"dataset": {"maxInvalidFraction": 0.2}},
        {"training": {"lossOn": "All"}},
        {"training": {"maxSequenceLength": 300}},
        {"rows": [*DIRTY, *sum_rows(60)[50:]]},
        {"rows": [*DIRTY[1:], DIRTY[0]]},
        {"job": {"namespace": "team-b", "name": "a", "uid": "u"}},
    ],
    ids=str,
)
def test_what_determines_the_rows_or_another_namespace_prevents_the_reuse(
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    parts: dict[str, Any],
) -> None:
    run(make())
    alone = make(**parts | {"job": None}, preparedCache=None)
    expected = content(run(alone))
    capsys.readouterr()
    monkeypatch.setattr(StatusWriter, "result", lambda *_, **__: None)  # there is no API server
    bundle = make(**parts)
    preflight(bundle, open_storage(bundle), StatusWriter(None, "preflight"))
    assert TAKEN_OVER not in capsys.readouterr().out
    assert content(read(bundle, open_storage(bundle))) == expected
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize(("hours", "renewed"), [(1, False), (25, True), (None, True), (-1, False), (-1000, True)])
def test_older_rows_are_written_again_so_that_no_lifecycle_rule_deletes_them_during_the_job(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], hours: int | None, renewed: bool
) -> None:
    first = run(make())
    (entry,) = entries(tmp_path)
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["written"]
    manifest["written"] = (datetime.now(UTC) - timedelta(hours=hours)).isoformat() if hours else None
    (entry / "manifest.json").write_text(json.dumps(manifest))
    before = {path.name: path.read_bytes() for path in entry.iterdir() if path.name != "manifest.json"}
    for path in entry.iterdir():
        os.utime(path, (0, 0))
    capsys.readouterr()
    assert content(run(make())) == content(first)
    assert TAKEN_OVER in capsys.readouterr().out
    assert {path.stat().st_mtime > 0 for path in entry.iterdir()} == {renewed}
    assert {path.name: path.read_bytes() for path in entry.iterdir() if path.name != "manifest.json"} == before
    assert entries(tmp_path) == [entry]


def test_rows_that_cannot_be_written_again_are_still_used(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make())
    (entry,) = entries(tmp_path)
    manifest = json.loads((entry / "manifest.json").read_text())
    (entry / "manifest.json").write_text(json.dumps(manifest | {"written": "2020-01-01T00:00:00Z"}))

    def refused(*_: object) -> NoReturn:
        raise TrainerFailure(FailureReason.STORAGE_ACCESS_DENIED, "The S3 service does not allow to write.")

    monkeypatch.setattr(reuse, "store", refused)
    capsys.readouterr()
    run(make())
    said = capsys.readouterr().out
    assert TAKEN_OVER in said
    assert "so a lifecycle rule may delete them during the job: The S3 service does not allow to write." in said


def test_another_tokenizer_chat_template_or_program_prevents_the_reuse(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tokenizer(tmp_path / "model")
    save_model(tmp_path / "model")
    model = {"uri": str(tmp_path / "model")}
    run(make(model=model))
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|start|>", "<|start|> "))
    capsys.readouterr()
    run(make(model=model))
    assert TAKEN_OVER not in capsys.readouterr().out
    monkeypatch.setattr(reuse, "trainer_version", lambda: "another")
    run(make(model=model))
    assert TAKEN_OVER not in capsys.readouterr().out
    assert len(entries(tmp_path)) == 3


def cut(entry: Path) -> None:
    largest = max(entry.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def change(entry: Path) -> None:
    largest = max(entry.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"\xff")


def remove(entry: Path) -> None:
    next(path for path in entry.iterdir() if path.name != "manifest.json").unlink()


def garble(entry: Path) -> None:
    (entry / "manifest.json").write_text('{"files": {"rows/tokens"')


def lead_outside(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["files"]["../../outside"] = manifest["files"]["rows/tokens"]
    (entry / "manifest.json").write_text(json.dumps(manifest))


def forget(name: str) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        manifest = json.loads((entry / "manifest.json").read_text())
        del manifest["files"][name]
        (entry / "manifest.json").write_text(json.dumps(manifest))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        change,
        remove,
        garble,
        lead_outside,
        *map(forget, ("rows/texts", "gathered/train.npy", "gathered/words.json")),
    ],
)
def test_damaged_rows_are_not_used_and_are_written_again(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    expected = content(run(make()))
    damage(entries(tmp_path)[0])
    capsys.readouterr()
    assert content(run(make())) == expected
    said = capsys.readouterr().out
    assert TAKEN_OVER not in said
    assert f"The prepared rows in {entries(tmp_path)[0]} are not used: " in said
    assert content(run(make())) == expected
    assert TAKEN_OVER in capsys.readouterr().out


def test_rows_of_a_writer_that_was_stopped_are_not_used(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make())
    (entries(tmp_path)[0] / "manifest.json").unlink()
    capsys.readouterr()
    run(make())
    assert "The cache of prepared rows has no rows of these files and settings." in capsys.readouterr().out


def test_an_attempt_whose_cached_rows_are_gone_says_where_they_were(make: Make, tmp_path: Path) -> None:
    bundle = make()
    run(bundle)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(TrainerFailure) as caught:
        read(bundle, open_storage(bundle))
    assert caught.value.reason is FailureReason.DATASET_NOT_FOUND, "a retry would not find them either"
    assert f"The prepared data of the job at {tmp_path / 'cache' / LOCAL}" in caught.value.message


def test_an_attempt_whose_cached_rows_were_changed_says_where_they_are(make: Make, tmp_path: Path) -> None:
    bundle = make()
    run(bundle)
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            path.write_bytes(b"changed")
    with pytest.raises(TrainerFailure) as caught:
        read(bundle, open_storage(bundle))
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    assert f"The prepared rows of this job in {tmp_path / 'cache' / LOCAL}" in caught.value.message
    assert "spec.preparedCache.uri" in caught.value.message


def test_rows_in_the_cache_are_written_again_while_the_job_needs_them(make: Make, tmp_path: Path) -> None:
    bundle = make()
    run(bundle)
    storage, now = open_storage(bundle), datetime.now(UTC)
    read_prepared(storage, bundle, tmp_path / "scratch")
    renewal = Renewal(storage, bundle, tmp_path / "scratch" / "prepared", lambda: now)
    shutil.rmtree(tmp_path / "cache")
    now += RENEWED_AFTER
    renewal.if_due()
    assert len(read(bundle, storage).train) > 0


def test_rows_that_were_taken_over_are_written_again_when_they_are_a_day_old(make: Make, tmp_path: Path) -> None:
    run(make())
    (entry,) = entries(tmp_path)
    manifest, now = json.loads((entry / "manifest.json").read_text()), datetime.now(UTC)
    age = RENEWED_AFTER * 0.9
    (entry / "manifest.json").write_text(json.dumps(manifest | {"written": (now - age).isoformat()}))
    bundle = make()
    run(bundle)
    storage = open_storage(bundle)
    read_prepared(storage, bundle, tmp_path / "scratch")
    shutil.rmtree(entry)
    Renewal(storage, bundle, tmp_path / "scratch" / "prepared", lambda: now + RENEWED_AFTER - age).if_due()
    assert len(read(bundle, storage).train) > 0


def test_rows_of_files_that_change_while_they_are_read_are_not_written(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, real = make(), reuse.gather

    def changing(*given: Any) -> Any:
        found = real(*given)
        write_rows(Path(bundle.spec.dataset.train[0].uri), sum_rows(9))
        return found

    monkeypatch.setattr(reuse, "gather", changing)
    run(bundle)
    assert "their files changed while they were read" in capsys.readouterr().out
    assert entries(tmp_path) == []


def test_a_cache_that_cannot_be_written_or_read_does_not_fail_the_job(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> NoReturn:
        raise TrainerFailure(FailureReason.STORAGE_ACCESS_DENIED, "The keys must not do this.")

    expected = content(run(make(preparedCache=None)))
    with monkeypatch.context() as patched:
        patched.setattr(reuse, "store", refused)
        assert content(run(make())) == expected
    assert "The prepared rows were not written to the cache: The keys must not do this." in capsys.readouterr().out
    run(make())
    monkeypatch.setattr(reuse, "fetch", refused)
    assert content(run(make())) == expected
    assert "are not used: The keys must not do this." in capsys.readouterr().out


@pytest.fixture
def on_s3(s3: S3, make: Make, request: pytest.FixtureRequest) -> Callable[..., Bundle]:
    """Builds bundles with rows and a cache on a real S3 server. `secret`: the keys for the rows."""
    rows, cache = (s3.bucket(f"{kind}-{abs(hash(request.node.name)) % 10**9}") for kind in ("rows", "cache"))
    lines = "".join(json.dumps(row) + "\n" for row in sum_rows(60))
    for name in ("a", "b"):
        s3.client().put_object(Bucket=rows, Key=f"data/{name}.jsonl", Body=lines.replace("What", name).encode())

    def bundle(secret: str = "owner", files: str = "*") -> Bundle:
        storages = [
            {"buckets": [bucket], "endpoint": s3.endpoint, "credentialsSecretName": name}
            for bucket, name in ((rows, secret), (cache, "owner"))
        ]
        train = [{"uri": f"s3://{rows}/data/{files}.jsonl"}]
        return make(dataset={"train": train}, storages=storages, preparedCache={"uri": f"s3://{cache}/prepared"})

    return bundle


def check(bundle: Bundle, s3: S3) -> Prepared:
    storage = open_storage(bundle, s3.secrets_dir)
    preflight(bundle, storage, StatusWriter(None, "preflight"))
    return read(bundle, storage)


def test_rows_on_s3_are_reused_until_a_file_changes(
    on_s3: Callable[..., Bundle], s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = content(check(on_s3(), s3))
    capsys.readouterr()
    bundle = on_s3()
    assert content(check(bundle, s3)) == expected
    assert TAKEN_OVER in capsys.readouterr().out
    bucket = bundle.spec.dataset.train[0].uri.split("/")[2]
    changed = json.dumps({"prompt": "Another question?", "completion": "Another answer."}).encode()
    s3.client().put_object(Bucket=bucket, Key="data/b.jsonl", Body=changed)
    assert len(check(on_s3(), s3).train) < len(expected["rows"]["train"])
    assert TAKEN_OVER not in capsys.readouterr().out


def test_a_job_that_may_not_read_the_files_gets_no_rows_from_the_cache(on_s3: Callable[..., Bundle], s3: S3) -> None:
    check(on_s3(files="a"), s3)
    with pytest.raises(TrainerFailure) as caught:
        check(on_s3("wrong", files="a"), s3)
    assert caught.value.reason is FailureReason.STORAGE_ACCESS_DENIED


def test_jobs_that_write_the_same_rows_at_once_leave_whole_rows(
    on_s3: Callable[..., Bundle], s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    together, look_up = threading.Barrier(4), reuse.look_up

    def at_once(*given: Any) -> Any:
        found = look_up(*given)
        together.wait(60)
        return found

    bundles = [on_s3() for _ in range(4)]
    found: list[dict[str, Any]] = []
    with monkeypatch.context() as patched:
        patched.setattr(reuse, "look_up", at_once)
        threads = [
            threading.Thread(target=lambda each=each: found.append(content(check(each, s3)))) for each in bundles
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert all(each == found[0] for each in found)
    capsys.readouterr()
    assert content(check(on_s3(), s3)) == found[0]
    assert TAKEN_OVER in capsys.readouterr().out


def test_only_the_listed_files_are_fetched(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(np.arange(5).tobytes())
    bundle = Bundle.model_validate(
        {"spec": {"model": {"uri": "m"}, "dataset": {"train": [{"uri": "d"}]}, "output": {"uri": "o"}}}
    )
    storage = open_storage(bundle)
    prepared_cache.store(storage, str(tmp_path / "entry"), "j", {"rows/a": tmp_path / "a", "b": tmp_path / "a"})
    (tmp_path / "entry" / ("0" * 64)).write_text("another job's")
    found = prepared_cache.look_up(storage, str(tmp_path / "entry"))
    assert isinstance(found, prepared_cache.CachedRows)
    (tmp_path / "into").mkdir()
    assert prepared_cache.fetch(storage, found.below("rows"), tmp_path / "into") is None
    assert {path.name for path in (tmp_path / "into").rglob("*")} == {"a"}
