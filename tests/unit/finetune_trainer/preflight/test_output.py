"""The output folder is checked with a probe file before any row is read, and never overwrites another job's results."""

import json
from pathlib import Path

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.preflight.recipe import preflight
from finetune_trainer.storage import documents
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import S3, MakeBundle
from tests.unit.finetune_trainer.preflight_runs import failure, run


def test_an_output_with_another_jobs_results_is_refused_and_its_own_is_not(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "WRITING_SECONDS", 0.5)
    job = {"namespace": "team", "name": "tickets", "uid": "u-1"}
    bundle = make_bundle()
    manifest = tmp_path / "output" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text(json.dumps({"job": job}))
    found = failure(bundle)
    assert found.reason is FailureReason.OUTPUT_OCCUPIED
    assert "already contains the results of team/tickets" in found.message
    manifest.write_text("not ours")
    assert failure(bundle).reason is FailureReason.OUTPUT_OCCUPIED
    manifest.write_text(json.dumps({"job": None, "specDigest": bundle.spec_digest}))
    assert run(bundle).train


def test_an_output_that_cannot_be_written_is_found_before_the_rows_are_read(s3: S3, make_bundle: MakeBundle) -> None:
    s3.bucket("preflight-output")
    storages = [{"buckets": ["*"], "endpoint": s3.endpoint, "credentialsSecretName": "reader"}]
    bundle = make_bundle(rows=["not a row"], output={"uri": "s3://preflight-output/x"}, storages=storages)
    storage = open_storage(bundle, s3.secrets_dir)
    with pytest.raises(TrainerFailure, match=r"does not allow .* to write") as caught:
        preflight(bundle, storage, StatusWriter(None, "preflight"))
    assert caught.value.reason is FailureReason.OUTPUT_NOT_WRITABLE


def test_no_probe_remains_next_to_the_prepared_data(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    run(bundle)
    assert [path.name for path in Path(work_prefix(bundle)).iterdir()] == ["prepared"]


@pytest.mark.parametrize("output", ["data", "data/", "./data", "."])
def test_an_output_among_the_rows_is_refused_before_anything_is_read_or_written(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle(model={"uri": str(tmp_path / "no-such-model")}, output={"uri": output})
    found = failure(bundle)
    assert found.reason is FailureReason.SPEC_INVALID
    finding = ". is the folder of spec.model.uri (" if output == "." else "spec.dataset.train[0] ("
    assert found.message.startswith(f"spec.output.uri: {finding}")
    assert output == "." or f" reads files from {output}. " in found.message
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
