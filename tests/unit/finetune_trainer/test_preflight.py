"""Preflight from bundle to prepared data, and every way it says no."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.bundle import Bundle
from finetune_api.method import MethodType
from finetune_api.quantity import gibibytes
from finetune_api.reasons import FailureReason
from finetune_api.sizing import base_memory, predict
from finetune_api.status import FineTuneJobStatus
from finetune_trainer.base_model import inspect_model
from finetune_trainer.estimate import data_size, loads, setups_of
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.preflight import preflight
from finetune_trainer.prepared import Prepared, read_prepared, work_prefix
from finetune_trainer.scratch import scratch_folder
from finetune_trainer.status_writer import StatusWriter
from finetune_trainer.storage import Storage, open_storage
from tests.unit.finetune_trainer.conftest import S3, MakeBundle, save_model, save_tokenizer, sum_rows, write_rows


def run(bundle: Bundle) -> Prepared:
    preflight(bundle, open_storage(bundle), StatusWriter(None, "preflight"))
    return read(bundle, open_storage(bundle))


def read(bundle: Bundle, storage: Storage) -> Prepared:
    """What an attempt reads; its rows outlive the folder, which is mapped already."""
    with scratch_folder("test-") as scratch:
        return read_prepared(storage, bundle, scratch)


def failure(bundle: Bundle) -> TrainerFailure:
    with pytest.raises(TrainerFailure) as caught:
        preflight(bundle, open_storage(bundle), StatusWriter(None, "preflight"))
    return caught.value


def written(capsys: pytest.CaptureFixture[str]) -> FineTuneJobStatus:
    """The status the pod would have written, from the line it prints outside Kubernetes."""
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("preflight: {")][-1]
    return FineTuneJobStatus.model_validate_json(line.removeprefix("preflight: "))


def test_what_an_attempt_reads_is_what_preflight_prepared(make_bundle: MakeBundle, tiny_model_dir: Path) -> None:
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
    assert example.source.endswith("data/train.jsonl:1")


def test_the_status_says_what_was_found_and_resolved(
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


def test_what_the_job_should_take_is_in_the_status(make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = {"name": "h100-80gb", "memory": "81559Mi", "pricePerHour": "3.60"}
    run(make_bundle(gpuTypes=[gpu]))
    status = written(capsys)
    assert status.preflight
    (estimate,) = status.preflight.estimate or []
    assert (estimate.gpu_type, estimate.fits, estimate.memory) == ("h100-80gb", True, "1.0Gi")
    assert estimate.seconds
    assert float(estimate.cost or 0) == pytest.approx(estimate.seconds / 1000, abs=0.01)


def test_a_job_that_does_not_fit_ends_before_anything_is_written(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(gpuTypes=[{"name": "tiny", "memory": "1Gi"}])
    found = failure(bundle)
    assert found.reason is FailureReason.DOES_NOT_FIT
    assert "tiny has 1Gi. No method would fit: choose a smaller model." in found.message
    status = written(capsys)
    assert status.preflight
    (estimate,) = status.preflight.estimate or []
    assert (estimate.fits, estimate.seconds) == (False, None)
    assert not (Path(work_prefix(bundle)) / "prepared").exists()


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


def test_named_test_rows_are_kept_and_their_copies_leave_train(make_bundle: MakeBundle, tmp_path: Path) -> None:
    held = write_rows(tmp_path / "test.jsonl", sum_rows(5))
    train = write_rows(tmp_path / "train.jsonl", sum_rows(20))
    prepared = run(make_bundle(dataset={"train": [{"uri": str(train)}], "test": [{"uri": str(held)}]}))
    assert [example.prompt for example in prepared.test] == [row["prompt"] for row in sum_rows(5)]
    assert {example.prompt for example in prepared.train} == {row["prompt"] for row in sum_rows(20)[5:]}
    assert prepared.preflight.duplicates == 5


def test_a_train_set_that_only_repeats_the_test_set_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    rows = [{"uri": str(write_rows(tmp_path / "rows.jsonl", sum_rows(5)))}]
    found = failure(make_bundle(dataset={"train": rows, "test": rows}))
    assert found.reason is FailureReason.DATASET_INVALID
    assert "dataset.train holds no row that does not also stand in dataset.test" in found.message


def test_named_validation_rows_are_kept_and_their_copies_leave_train(make_bundle: MakeBundle, tmp_path: Path) -> None:
    files = {
        side: [{"uri": str(write_rows(tmp_path / f"{side}.jsonl", rows))}]
        for side, rows in (("test", sum_rows(5)), ("validation", sum_rows(12)), ("train", sum_rows(30)))
    }
    prepared = run(make_bundle(dataset=files))
    assert [example.prompt for example in prepared.test] == [row["prompt"] for row in sum_rows(5)]
    assert [example.prompt for example in prepared.validation] == [row["prompt"] for row in sum_rows(12)[5:]]
    assert [example.prompt for example in prepared.train] == [row["prompt"] for row in sum_rows(30)[12:]]
    assert prepared.preflight.duplicates == 5 + 12


def test_rows_to_validate_on_are_drawn_from_train(make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_bundle().spec.dataset.model_dump(by_alias=True, exclude_none=True)
    prepared = run(make_bundle(rows=sum_rows(100), dataset=dataset | {"split": {"validation": 0.1}}))
    sides = [prepared.train, prepared.validation, prepared.test]
    assert [len(side) for side in sides] == [70, 10, 20]
    assert len({example.prompt for side in sides for example in side}) == 100
    splits = written(capsys).preflight.splits  # type: ignore[union-attr]
    assert (splits.train, splits.validation, splits.test) == (70, 10, 20)  # type: ignore[union-attr]


def test_rows_that_ask_the_same_share_a_cluster_and_a_side(make_bundle: MakeBundle) -> None:
    rows = [{"prompt": f"What is {i % 20}?", "completion": f"It is {i}."} for i in range(60)]
    prepared = run(make_bundle(rows=rows))
    clusters: dict[int, set[str]] = {}
    for example in (*prepared.train, *prepared.test):
        clusters.setdefault(example.cluster, set()).add(example.prompt)
    assert [len(prompts) for prompts in clusters.values()] == [1] * 20
    assert {e.cluster for e in prepared.train}.isdisjoint(e.cluster for e in prepared.test)


def test_a_row_carries_the_index_of_its_source(make_bundle: MakeBundle, tmp_path: Path) -> None:
    rows = sum_rows(60)
    train = [{"uri": str(write_rows(tmp_path / f"{n}.jsonl", rows[n::2]))} for n in range(2)]
    prepared = run(make_bundle(dataset={"train": train}))
    assert {(e.mixture, e.source.rsplit("/")[-1].split(":")[0]) for e in prepared.train} == {
        (0, "0.jsonl"),
        (1, "1.jsonl"),
    }


def test_documents_are_cut_not_dropped_and_their_pieces_stay_on_one_side(make_bundle: MakeBundle) -> None:
    rows = [{"text": f"Document {n}: " + "word " * 5 * n} for n in range(30)]
    prepared = run(make_bundle(rows=rows, training={"maxSequenceLength": 40}))
    assert prepared.preflight.overlength == 0
    assert prepared.resolved.max_sequence_length == 40
    pieces = sorted((e for e in (*prepared.train, *prepared.test)), key=lambda e: int(e.source.rpartition(":")[2]))
    assert "".join(piece.answer for piece in pieces) == "".join(row["text"] for row in rows)
    assert {e.source for e in prepared.train}.isdisjoint(e.source for e in prepared.test)


def test_rows_over_the_length_are_dropped_and_counted(make_bundle: MakeBundle) -> None:
    long = {"prompt": "long", "completion": "x" * 300}
    prepared = run(make_bundle(rows=[*sum_rows(60), long], training={"maxSequenceLength": 100}))
    assert prepared.preflight.overlength == 1
    assert prepared.resolved.max_sequence_length == 100
    assert all(len(example.input_ids) <= 100 for example in (*prepared.train, *prepared.test))


def test_a_row_over_the_length_fails_the_job_where_that_is_asked_for(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(rows=[*sum_rows(60), {"prompt": "long", "completion": "x" * 300}])
    dataset = bundle.spec.dataset.model_dump(by_alias=True, exclude_none=True) | {"overlength": "Fail"}
    spec = bundle.spec.model_dump(by_alias=True, exclude_none=True)
    spec |= {"dataset": dataset, "training": {"maxSequenceLength": 100}}
    found = failure(Bundle.model_validate({"spec": spec}))
    assert found.reason is FailureReason.DATASET_INVALID
    assert "train.jsonl line 61 is" in found.message
    assert "training.maxSequenceLength is 100" in found.message


@pytest.mark.parametrize("side", ["test", "validation", "train"])
def test_rows_over_the_length_are_dropped_or_named_on_the_side_they_stand_on(
    make_bundle: MakeBundle, tmp_path: Path, side: str
) -> None:
    long = [{"prompt": f"long {n}", "completion": "x" * 300} for n in range(2)]
    rows = {"test": sum_rows(30)[:5], "validation": sum_rows(30)[5:10], "train": sum_rows(30)[10:]}
    rows[side] = [*rows[side], *long]
    dataset = {name: [{"uri": str(write_rows(tmp_path / f"{name}.jsonl", found))}] for name, found in rows.items()}
    training = {"maxSequenceLength": 100}
    prepared = run(make_bundle(dataset=dataset, training=training))
    assert [len(prepared.test), len(prepared.validation), len(prepared.train)] == [5, 5, 20]
    assert prepared.preflight.overlength == 2
    found = failure(make_bundle(dataset=dataset | {"overlength": "Fail"}, training=training))
    assert f"{side}.jsonl line {len(rows[side]) - 1} is" in found.message
    assert f"(one of 2 such rows of dataset.{side})" in found.message


def test_a_length_no_row_keeps_is_refused(make_bundle: MakeBundle) -> None:
    found = failure(make_bundle(training={"maxSequenceLength": 16}))
    assert (found.reason, "no row is left" in found.message) == (FailureReason.DATASET_INVALID, True)


def test_a_length_over_the_models_context_is_refused(make_bundle: MakeBundle) -> None:
    found = failure(make_bundle(training={"maxSequenceLength": 513}))
    assert found.reason is FailureReason.SPEC_INVALID
    assert found.message == "training.maxSequenceLength 513 is more than the model's context of 512."


def test_a_bad_row_is_named_in_the_status_with_what_was_read_so_far(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = sum_rows(20)
    rows[16] = {"prompt": "What is the secret?"}
    found = failure(make_bundle(rows=rows))
    assert found.reason is FailureReason.DATASET_INVALID
    status = written(capsys)
    condition = (status.conditions or [])[0]
    assert (condition.status, condition.reason) == ("False", "DatasetInvalid")
    assert "train.jsonl line 17: no completion (columns found: prompt)." in condition.message
    assert condition.message.endswith("Correct the rows and create the job again.")
    assert "secret" not in condition.message
    assert status.preflight is not None
    assert (status.preflight.rows, status.preflight.invalid) == (20, 1)


def test_as_many_invalid_rows_as_allowed_are_left_out_and_said(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [*sum_rows(60), {"prompt": "What?"}, "?", {"prompt": "a\x00b", "completion": "c"}]
    dataset = make_bundle().spec.dataset.model_dump(by_alias=True, exclude_none=True)
    assert failure(make_bundle(rows=rows)).reason is FailureReason.DATASET_INVALID
    prepared = run(make_bundle(rows=rows, dataset=dataset | {"maxInvalidFraction": 0.05}))
    assert len(prepared.train) + len(prepared.test) == 61
    found = written(capsys).preflight
    assert found is not None
    assert (found.rows, found.invalid) == (63, 2)
    said = [(finding.severity.value, finding.message, finding.rows) for finding in found.findings or []]
    assert said == [
        ("Error", "no completion", 1),
        ("Error", "text, not an object", 1),
        ("Warning", "a control character", 1),
    ]
    assert (found.findings or [])[0].places[0].endswith("train.jsonl line 61 (columns found: prompt)")
    assert prepared.preflight.findings == found.findings


def test_sources_are_counted_by_name(make_bundle: MakeBundle, tmp_path: Path) -> None:
    rows = sum_rows(60)
    files = [str(write_rows(tmp_path / f"{n}.jsonl", rows[20 * n : 60 if n else 20])) for n in range(2)]
    prepared = run(make_bundle(dataset={"train": [{"uri": files[0], "name": "few"}, {"uri": files[1]}]}))
    sources = prepared.preflight.sources or []
    assert [(source.side, source.name, source.rows) for source in sources] == [
        ("train", "few", 20),
        ("train", "train-2", 40),
    ]
    tokens = sum(len(example.input_ids) for example in (*prepared.train, *prepared.test))
    assert sum(source.tokens for source in sources) == tokens


def test_a_status_that_cannot_be_written_does_not_hide_what_was_wrong(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: StatusWriter, **parts: Any) -> None:
        raise ConnectionError("the API server is away")

    monkeypatch.setattr(StatusWriter, "result", unreachable)
    assert failure(make_bundle(rows=[])).reason is FailureReason.DATASET_INVALID


@pytest.mark.parametrize("rows", [[], [{"prompt": "a", "completion": "b"}]])
def test_too_few_rows_are_refused(make_bundle: MakeBundle, rows: list[Any]) -> None:
    assert failure(make_bundle(rows=rows)).reason is FailureReason.DATASET_INVALID


def test_an_output_with_another_jobs_results_is_refused_and_its_own_is_not(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    job = {"namespace": "team", "name": "tickets", "uid": "u-1"}
    bundle = make_bundle()
    manifest = tmp_path / "output" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text(json.dumps({"job": job}))
    found = failure(bundle)
    assert found.reason is FailureReason.OUTPUT_OCCUPIED
    assert "already holds the results of team/tickets" in found.message
    manifest.write_text("not ours")
    assert failure(bundle).reason is FailureReason.OUTPUT_OCCUPIED
    manifest.write_text(json.dumps({"job": None, "specDigest": bundle.spec_digest}))
    assert run(bundle).train


def test_an_output_that_cannot_be_written_is_found_before_the_rows_are_read(s3: S3, make_bundle: MakeBundle) -> None:
    s3.bucket("preflight-output")
    storages = [{"buckets": ["*"], "endpoint": s3.endpoint, "credentialsSecretName": "reader"}]
    bundle = make_bundle(rows=["not a row"], output={"uri": "s3://preflight-output/x"}, storages=storages)
    storage = open_storage(bundle, s3.secrets_dir)
    with pytest.raises(TrainerFailure, match="may not write") as caught:
        preflight(bundle, storage, StatusWriter(None, "preflight"))
    assert caught.value.reason is FailureReason.OUTPUT_NOT_WRITABLE


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
    assert prepared.train[0].source == "s3://acme-all/rows/part-0.jsonl:1"
    assert {path.split("/")[0] for path in storage.list_folder("s3://acme-all/out/.work/u-1")} == {"prepared"}


def test_no_probe_is_left_beside_the_prepared_data(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    run(bundle)
    assert [path.name for path in Path(work_prefix(bundle)).iterdir()] == ["prepared"]


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


def test_prepared_data_that_was_changed_or_removed_is_not_trained_on(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    run(bundle)
    folder = Path(work_prefix(bundle)) / "prepared"
    data = (folder / "tokens").read_bytes()
    (folder / "tokens").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(TrainerFailure, match="not what preflight wrote"):
        read(bundle, open_storage(bundle))
    (folder / "manifest.json").unlink()
    with pytest.raises(TrainerFailure, match="preflight has to run again"):
        read(bundle, open_storage(bundle))


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


PASSAGE = (
    "On the {0} day of the trial run the team of {0} measured the pressure in vessel {0} twice, wrote both values of "
    "{0} down, sent those of {0} to the office, and asked there whether {0} was the"
)


def near_copies(count: int) -> list[dict[str, str]]:
    """Pairs of rows that differ in one word of the question."""
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}quix{i}" for i in range(count)]
    return [
        {"prompt": f"{PASSAGE.format(word)} {ending}?", "completion": f"{word} {ending}"}
        for word in words
        for ending in ("first", "second")
    ]


def test_near_copies_never_straddle_the_split(make_bundle: MakeBundle) -> None:
    prepared = run(make_bundle(rows=near_copies(60)))
    clusters = [{example.cluster for example in side} for side in (prepared.train, prepared.test)]
    assert clusters[0].isdisjoint(clusters[1])
    assert len(clusters[0] | clusters[1]) == 60
    assert prepared.preflight.near_duplicates == 60


def test_on_request_only_the_first_of_near_copies_is_kept(make_bundle: MakeBundle) -> None:
    rows = [{**row, "completion": "the same"} for row in near_copies(60)]
    prepared = run(with_dataset(make_bundle(rows=rows), deduplicate={"near": "Drop"}))
    assert {"first?" in example.prompt for example in (*prepared.train, *prepared.test)} == {True}
    assert len(prepared.train) + len(prepared.test) == 60
    assert prepared.preflight.near_duplicates == 60


def test_a_planted_test_row_is_found(make_bundle: MakeBundle, tmp_path: Path) -> None:
    rows = near_copies(60)
    planted = rows[101] | {
        "completion": "Nobody at the office could be reached, so that this is still an open question."
    }
    train = write_rows(tmp_path / "train.jsonl", [*rows[0:100:2], planted])
    test = write_rows(tmp_path / "test.jsonl", rows[100::2])
    dataset = {"train": [{"uri": str(train)}], "test": [{"uri": str(test)}]}
    told = {advice.reason: advice.message for advice in run(make_bundle(dataset=dataset)).preflight.advice or []}
    assert "1 of 10 test rows (10%) stand wholly or mostly in rows of dataset.train" in told["TestRowsLeak"]
    assert "test.jsonl line 1 in " in told["TestRowsLeak"]
    assert "train.jsonl line 51)" in told["TestRowsLeak"]
    dropped = run(make_bundle(dataset=dataset | {"deduplicate": {"near": "Drop"}}))
    assert "TestRowsLeak" not in {advice.reason for advice in dropped.preflight.advice or []}


@pytest.mark.parametrize("deduplicate", [{}, {"near": "Keep"}])
def test_a_test_row_inside_a_longer_row_is_found_with_its_place(
    make_bundle: MakeBundle, tmp_path: Path, deduplicate: dict[str, str]
) -> None:
    asked = "A farmer has twelve cows and sells five of them on Monday, so how many cows are left for him to milk?"
    longer = {"prompt": f"Solve this for me, please, and explain why. {asked} Thank you!", "completion": "7"}
    answered = {"prompt": "Give me an example of a question.", "completion": f"Here is one. {asked}"}
    train = write_rows(tmp_path / "train.jsonl", [*sum_rows(40), longer])
    other = write_rows(tmp_path / "other.jsonl", [*sum_rows(3), answered])
    test = write_rows(tmp_path / "test.jsonl", [*sum_rows(50)[40:], {"prompt": asked, "completion": "7"}])
    for file, place in ((train, "train.jsonl line 41)"), (other, "other.jsonl line 4)")):
        dataset = {"train": [{"uri": str(file)}], "test": [{"uri": str(test)}], "deduplicate": deduplicate}
        told = {advice.reason: advice.message for advice in run(make_bundle(dataset=dataset)).preflight.advice or []}
        assert "1 of 11 test rows (9%)" in told["TestRowsLeak"]
        assert place in told["TestRowsLeak"]


def test_a_short_test_row_that_is_asked_in_train_is_found_where_it_first_stands(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    asked = [{"prompt": "Is it late?", "completion": answer} for answer in ("no", "yes", "a little")]
    train = write_rows(tmp_path / "train.jsonl", [*sum_rows(40), *asked[:2]])
    test = write_rows(tmp_path / "test.jsonl", [*sum_rows(50)[40:], asked[2]])
    prepared = run(make_bundle(dataset={"train": [{"uri": str(train)}], "test": [{"uri": str(test)}]}))
    told = {advice.reason: advice.message for advice in prepared.preflight.advice or []}
    assert "1 of 11 test rows (9%)" in told["TestRowsLeak"]
    assert "test.jsonl line 11 in " in told["TestRowsLeak"]
    assert "train.jsonl line 41)" in told["TestRowsLeak"]


def test_advice_is_told_and_stops_nothing(make_bundle: MakeBundle) -> None:
    rows = [{"prompt": f"[INST] Is {i} even? [/INST]", "completion": "yes"} for i in range(40)]
    told = {
        advice.reason for advice in run(make_bundle(rows=rows, training={"learningRate": 0.5})).preflight.advice or []
    }
    assert told >= {"FewRows", "PromptFormatInRows", "OneAnswerRepeated", "TestSetSmall", "LearningRateUnusual"}


def test_every_row_knows_its_source_and_weights_are_told_of(make_bundle: MakeBundle, tmp_path: Path) -> None:
    large = write_rows(tmp_path / "large.jsonl", sum_rows(80))
    small = write_rows(tmp_path / "small.jsonl", near_copies(5))
    sources = [{"uri": str(large), "weight": 1}, {"uri": str(small), "weight": 3}]
    prepared = run(make_bundle(dataset={"train": sources}, training={"epochs": 2}))
    assert {example.mixture for example in prepared.train} == {0, 1}
    told = {advice.reason: advice.message for advice in prepared.preflight.advice or []}
    assert "every row of dataset.train[1] is taken" in told["SourceRepeated"]


def test_a_weight_for_a_source_of_which_nothing_is_left_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    once = write_rows(tmp_path / "once.jsonl", sum_rows(40))
    again = write_rows(tmp_path / "again.jsonl", sum_rows(40))
    sources = [{"uri": str(once), "weight": 1}, {"uri": str(again), "weight": 1}]
    found = failure(make_bundle(dataset={"train": sources}))
    assert found.reason is FailureReason.DATASET_INVALID
    assert "dataset.train[1] has a weight and no row to learn from" in found.message


def with_dataset(bundle: Bundle, **parts: Any) -> Bundle:
    """The bundle with parts of its dataset replaced."""
    said = bundle.model_dump(mode="json", by_alias=True, exclude_none=True)
    said["spec"]["dataset"] |= parts
    return Bundle.model_validate(said)


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


def test_auto_takes_4_bit_weights_where_only_they_fit(make_bundle: MakeBundle, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "model")
    save_model(tmp_path / "model", hidden_size=512, intermediate_size=2048)
    model = {"uri": str(tmp_path / "model")}
    bundle = make_bundle(model=model)
    prepared = run(bundle)
    assert prepared.resolved.method is MethodType.LORA, "nobody says what the GPUs hold"
    assert prepared.resolved.base_memory is None
    shape = inspect_model(open_storage(bundle), model["uri"], tmp_path / "scratch").shape
    size = data_size({"train": prepared.train, "test": prepared.test}, 200)

    def needed(method: MethodType) -> int:
        resolved = prepared.resolved.model_copy(update={"method": method})
        return predict(shape, setups_of(bundle.spec, resolved)[-1], loads(size, 8, 2048)[-1]).total

    between = (needed(MethodType.LORA) + needed(MethodType.QLORA)) // 2
    assert needed(MethodType.QLORA) < between < needed(MethodType.LORA)
    gpu = {"name": "small", "memory": str(between)}
    found = run(make_bundle(model=model, gpuTypes=[gpu], output={"uri": str(tmp_path / "auto")}))
    assert found.resolved.method is MethodType.QLORA
    assert found.resolved.base_memory == gibibytes(base_memory(shape, found.resolved.micro_batch_tokens))
    assert "more than small has" in (found.resolved.method_reason or "")
    assert [estimate.fits for estimate in found.preflight.estimate or []] == [True]
