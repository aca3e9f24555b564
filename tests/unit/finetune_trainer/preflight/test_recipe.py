"""Preflight from the bundle to the prepared data, and the status that it writes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.bundle import Bundle
from finetune_api.reasons import FAILURES, FailureReason, Retry
from finetune_api.uris import FILES, FOLDER, MODEL
from finetune_trainer.handover.prepared import Prepared, read_prepared
from finetune_trainer.handover.prepared_place import Renewal, used_manifest, work_prefix
from finetune_trainer.handover.renewed import RENEWED_AFTER
from finetune_trainer.pod.failure import Cancelled, TrainerFailure
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.preflight.recipe import preflight
from finetune_trainer.storage import documents
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import S3, MakeBundle, save_tokenizer, sum_rows, write_rows
from tests.unit.finetune_trainer.preflight_runs import failure, read, run, with_dataset, written


def test_an_attempt_reads_the_data_that_preflight_prepared(make_bundle: MakeBundle, tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    prepared = run(make_bundle())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert (len(prepared.train), len(prepared.test)) == (48, 12)
    example = prepared.train[0]
    asked, answer = tokenizer.decode(example.input_ids).split("<|end|>\n<|start|>assistant\n")
    assert asked.endswith(example.prompt)
    assert answer == f"{example.answer}<|end|>"
    assert tokenizer.decode(example.input_ids[example.supervised]) == f"{example.answer}<|end|>"
    assert example.supervised.tolist().index(True) == example.prompt_length
    assert prepared.stop_token_ids == (tokenizer.eos_token_id,)
    assert example.place.endswith("data/train.jsonl:1")


def test_the_status_contains_the_findings_and_the_resolved_settings(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sum_rows(60)
    prepared = run(make_bundle(rows=[*rows, *rows[:7]], training={"epochs": 3}))
    status = written(capsys)
    condition = (status.conditions or [])[0]
    assert (condition.type, condition.status, condition.reason) == ("Validated", "True", "DataValid")
    assert status.preflight is not None
    assert status.preflight.splits is not None
    assert status.resolved is not None
    assert (status.preflight.rows, status.preflight.invalid, status.preflight.duplicates) == (67, 0, 7)
    assert (status.preflight.splits.train, status.preflight.splits.test) == (48, 12)
    assert status.preflight.tokens == sum(len(example.input_ids) for example in prepared.train)
    assert status.preflight.supervised_tokens == sum(int(example.supervised.sum()) for example in prepared.train)
    assert status.resolved.total_steps == 18
    assert status.resolved.prompt_format == "ChatTemplate"
    assert status.resolved.max_sequence_length == max(
        len(example.input_ids) for example in (*prepared.train, *prepared.test)
    )


def test_the_number_of_parameters_is_that_of_the_loaded_model(make_bundle: MakeBundle, tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert (
        run(make_bundle()).resolved.parameters == AutoModelForCausalLM.from_pretrained(tiny_model_dir).num_parameters()
    )


def test_the_same_rows_give_the_same_digest_and_others_do_not(make_bundle: MakeBundle) -> None:
    def digest(**parts: Any) -> str | None:
        return run(make_bundle(**parts)).preflight.digest

    first = digest()
    assert digest() == first
    changed = [*sum_rows(59), {"prompt": "What is 59 plus 59?", "completion": "It is 119."}]
    dataset = make_bundle().spec.dataset.model_dump(by_alias=True, exclude_none=True)
    others = [
        digest(rows=changed),
        digest(training={"maxSequenceLength": 100}),
        digest(dataset=dataset | {"split": {"seed": 1}}),
    ]
    assert len({first, *others}) == 4


def test_loss_on_all_learns_prompts_too_and_judges_by_answers(make_bundle: MakeBundle, tmp_path: Path) -> None:
    def prepared(loss_on: str) -> Prepared:
        bundle = make_bundle(
            training={"lossOn": loss_on},
            dataset={"train": make_bundle().spec.dataset.train, "split": {"validation": 0.2}},
            output={"uri": str(tmp_path / loss_on)},
        )
        return run(bundle)

    answers, everything = prepared("Completion"), prepared("All")
    assert everything.preflight.supervised_tokens == (everything.preflight.tokens or 0) - len(everything.train)
    assert everything.preflight.digest != answers.preflight.digest, "other training data"
    for row in (*everything.train, *everything.validation[:3]):
        assert not row.supervised[0]
        assert row.supervised[1:].all()
    for before, after in zip(answers.test, everything.test, strict=True):
        assert np.array_equal(before.supervised, after.supervised)


def test_everything_in_s3_works_as_it_does_on_disk(
    s3: S3, make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    s3.bucket("acme-all")
    for path in tiny_model_dir.iterdir():
        s3.client().upload_file(str(path), "acme-all", f"model/{path.name}")
    for part in (0, 1):
        rows = write_rows(tmp_path / "part.jsonl", sum_rows(60)[part::2])
        s3.client().upload_file(str(rows), "acme-all", f"rows/part-{part}.jsonl")
    bundle = make_bundle(
        job={"namespace": "team", "name": "tickets", "uid": "u-1"},
        model={"uri": "s3://acme-all/model/"},
        dataset={"train": [{"uri": "s3://acme-all/rows/*.jsonl"}]},
        output={"uri": "s3://acme-all/out/"},
        storages=[{"buckets": ["acme-*"], "endpoint": s3.endpoint, "credentialsSecretName": "owner"}],
    )
    storage = open_storage(bundle, s3.secrets_dir)
    preflight(bundle, storage, StatusWriter(None, "preflight"))
    prepared, local = read(bundle, storage), run(make_bundle())
    assert prepared.resolved == local.resolved
    assert {example.prompt for example in prepared.test} == {example.prompt for example in local.test}
    assert prepared.train[0].place == "s3://acme-all/rows/part-0.jsonl:1"
    assert {path.split("/")[0] for path in storage.list_folder("s3://acme-all/out/.work/u-1")} == {"prepared"}


def test_a_model_without_chat_template_is_given_the_plain_format(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = tmp_path / "plain"
    save_tokenizer(model, chat_template=None)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((tiny_model_dir / name).read_bytes())
    prepared = run(make_bundle(model={"uri": str(model)}))
    assert prepared.resolved.prompt_format == "Plain"
    assert "eos_token" in prepared.chat_template


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: "[]",
        lambda text: text.replace('"stopTokenIds"', '"stopTokens"'),
        lambda text: text.replace('"kind"', '"sort"'),
        lambda text: text.replace('"totalSteps"', '"steps"'),
    ],
    ids=["not an object", "a key of another name", "a field of another name", "another status"],
)
def test_damaged_prepared_data_is_told(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, harm: Callable[[str], str]
) -> None:
    monkeypatch.setattr(documents, "WRITING_SECONDS", 0.0)
    bundle = make_bundle()
    run(bundle)
    manifest = Path(work_prefix(bundle)) / "prepared" / "used" / "manifest.json"
    changed = harm(manifest.read_text())
    assert changed != manifest.read_text()
    manifest.write_text(changed)
    with pytest.raises(TrainerFailure, match=r"The prepared data at .* is damaged\.") as caught:
        read(bundle, open_storage(bundle))
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_prepared_data_that_was_changed_or_removed_is_not_trained_on(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    run(bundle)
    folder = Path(work_prefix(bundle)) / "prepared"
    data = (folder / "local" / "tokens").read_bytes()
    (folder / "local" / "tokens").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(TrainerFailure, match="was changed after preflight wrote it") as changed:
        read(bundle, open_storage(bundle))
    assert changed.value.reason is FailureReason.STORAGE_UNAVAILABLE, "the next download may be whole"
    (folder / "local" / "tokens").unlink()
    missing = [why_not(bundle)]
    (folder / "used" / "manifest.json").unlink()
    (folder / "manifest.json").unlink()
    missing.append(why_not(bundle))
    for each in missing:
        assert FAILURES[each.reason].retry is Retry.NEVER
        assert "was deleted after preflight wrote it, by a lifecycle rule" in each.finding
        assert "set spec.resumeFrom to {name: NAME}" in (each.remedy or "")


def test_prepared_data_of_another_format_is_told_with_its_remedy(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    run(bundle)
    used = Path(work_prefix(bundle)) / "prepared" / "used" / "manifest.json"
    used.write_text(json.dumps(json.loads(used.read_text()) | {"version": 2}))
    found = why_not(bundle)
    assert FAILURES[found.reason].retry is Retry.NEVER
    assert "has format 2, and this trainer reads format 1: spec.trainer.image of the FineTuneProfile" in found.finding
    assert "goes on from the newest checkpoint" in (found.remedy or "")


def why_not(bundle: Bundle) -> TrainerFailure:
    """Why an attempt cannot read the prepared data."""
    with pytest.raises(TrainerFailure) as caught:
        read(bundle, open_storage(bundle))
    return caught.value


def test_a_preflight_that_is_ready_after_the_training_began_changes_nothing(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(job={"namespace": "team", "name": "tickets", "uid": "u-1"})
    writer = StatusWriter(None, "preflight")
    for pod in ("p1", "p2"):  # the retry of a preflight counts
        monkeypatch.setenv("POD_UID", pod)
        preflight(bundle, open_storage(bundle), writer)
    assert used_manifest(open_storage(bundle), bundle)["folder"] == "p2"
    monkeypatch.setenv("POD_UID", "p1")
    preflight(bundle, open_storage(bundle), writer)
    assert used_manifest(open_storage(bundle), bundle)["folder"] == "p2"
    assert len(read(bundle, open_storage(bundle)).train) == 48


def test_prepared_data_is_written_again_after_a_day(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """A lifecycle rule of the bucket deletes what was not written for some days."""
    bundle = make_bundle()
    run(bundle)
    now = datetime.now(UTC)
    storage, folder = open_storage(bundle), Path(work_prefix(bundle)) / "prepared"
    read_prepared(storage, bundle, tmp_path)
    renewal = Renewal(storage, bundle, tmp_path / "prepared", lambda: now)
    (folder / "local" / "tokens").unlink()
    renewal.if_due()
    assert not (folder / "local" / "tokens").exists(), "it is young"
    now += RENEWED_AFTER
    renewal.if_due()
    assert len(read(bundle, storage).train) == 48
    assert datetime.fromisoformat(used_manifest(storage, bundle)["written"]) == now
    (folder / "local" / "tokens").unlink()
    renewal.if_due()
    assert not (folder / "local" / "tokens").exists(), "it was written a moment ago"


@pytest.mark.parametrize(("hours", "due"), [(-1000, True), (-25, True), (-1, False), (1, False), (25, True)])
def test_a_wrong_clock_does_not_keep_prepared_data_from_being_written_again(
    make_bundle: MakeBundle, tmp_path: Path, hours: int, due: bool
) -> None:
    """The manifest has the time of another node than that of this pod. `hours`: its age by these two clocks."""
    bundle = make_bundle()
    run(bundle)
    storage = open_storage(bundle)
    read_prepared(storage, bundle, tmp_path)
    now = datetime.fromisoformat(used_manifest(storage, bundle)["written"]) + timedelta(hours=hours)
    Renewal(storage, bundle, tmp_path / "prepared", lambda: now).if_due()
    assert (datetime.fromisoformat(used_manifest(storage, bundle)["written"]) == now) == due


def test_a_renewal_that_is_no_longer_needed_ends_before_its_next_file(
    make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    run(bundle)
    storage, folder = open_storage(bundle), Path(work_prefix(bundle)) / "prepared"
    read_prepared(storage, bundle, tmp_path)
    before = used_manifest(storage, bundle)
    files = sorted(folder / "local" / name for name in before["files"])
    for path in files:
        path.unlink()
    renewal = Renewal(storage, bundle, tmp_path / "prepared", lambda: datetime.now(UTC) + RENEWED_AFTER)

    def advance(size: int) -> None:
        if any(path.exists() for path in files):
            raise Cancelled

    with pytest.raises(Cancelled):
        renewal.if_due(advance)
    assert sum(path.exists() for path in files) == 1 < len(files)
    assert used_manifest(storage, bundle) == before, "the data is still due"
    assert "was not written again" not in capsys.readouterr().out


def test_token_ids_and_marks_are_small_arrays(make_bundle: MakeBundle) -> None:
    example = run(make_bundle()).train[0]
    assert example.input_ids.dtype == np.int32
    assert example.supervised.dtype == np.bool_
    assert example.input_ids.shape == example.supervised.shape


def test_texts_are_cleaned_before_copies_are_dropped_and_the_status_says_what_changed(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*sum_rows(40), {"prompt": "What is 1 plus 1?", "completion": "It is 2. Sent from my phone"}]
    rows += [
        {"prompt": "Who?", "completion": "ask joe@example.com"},
        {"prompt": "Sent from my phone", "completion": "x"},
    ]
    clean = {"remove": ["Sent from my phone"], "whitespace": "Trim", "mask": ["Email"]}
    bundle = make_bundle(rows=rows)
    prepared = run(with_dataset(bundle, clean=clean))
    found = written(capsys).preflight
    assert found is not None
    assert found.cleaned is not None
    assert {step.name: step.rows for step in found.cleaned.steps} == {
        "unicode": 0,
        "remove[0]": 2,
        "whitespace": 1,
        "mask[Email]": 1,
    }
    assert (found.cleaned.rows, found.cleaned.emptied, found.duplicates) == (3, 1, 1)
    examples = [*prepared.train, *prepared.test]
    assert len(examples) == 41
    assert "ask <EMAIL_ADDRESS>" in {example.answer for example in examples}
    assert {change.step for change in prepared.cleaning} == {"remove[0]", "whitespace", "mask[Email]"}
    assert not any("joe@" in change.before for change in prepared.cleaning)


def test_advice_is_reported_and_does_not_stop_the_job(make_bundle: MakeBundle) -> None:
    rows = [{"prompt": f"[INST] Is {i} even? [/INST]", "completion": "yes"} for i in range(40)]
    told = {
        advice.reason for advice in run(make_bundle(rows=rows, training={"learningRate": 0.5})).preflight.advice or []
    }
    assert told >= {"FewRows", "PromptFormatInRows", "OneAnswerRepeated", "TestSetSmall", "LearningRateUnusual"}


@pytest.mark.parametrize(
    ("parts", "field", "words"),
    [
        ({"dataset": {"train": [{"uri": "s3://data/rows.txt"}]}}, "spec.dataset.train[0].uri", FILES.wanted),
        ({"dataset": {"train": [{"uri": "s3://data"}]}}, "spec.dataset.train[0].uri", FILES.wanted),
        ({"dataset": {"train": [{"uri": "s3:/data/rows.jsonl"}]}}, "spec.dataset.train[0].uri", FILES.wanted),
        ({"dataset": {"train": [{"uri": "s3://data/../rows.jsonl"}]}}, "spec.dataset.train[0].uri", "named . or .."),
        ({"model": {"uri": "s3://models"}}, "spec.model.uri", MODEL.wanted),
        ({"model": {"uri": "s3://Models/base"}}, "spec.model.uri", MODEL.wanted),
        ({"output": {"uri": "s3://results/*"}}, "spec.output.uri", FOLDER.wanted),
        ({"method": {"lora": {"from": "s3://adapters"}}}, "spec.method.lora.from", FOLDER.wanted),
    ],
)
def test_an_s3_uri_that_the_api_server_would_not_accept_is_refused_with_the_same_sentence(
    make_bundle: MakeBundle, parts: dict[str, Any], field: str, words: str
) -> None:
    found = failure(make_bundle(**parts))
    assert found.reason is FailureReason.SPEC_INVALID
    assert found.message.startswith(f"{field}: s3:")
    assert words in found.message
