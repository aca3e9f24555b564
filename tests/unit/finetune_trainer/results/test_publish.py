"""The files at output.uri, their order, and the job that owns them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method
from finetune_api.status.job import Artifacts
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.model.parameters.trainable import attach_lora
from finetune_trainer.pod import termination
from finetune_trainer.pod.failure import TrainerFailure, failure_of
from finetune_trainer.results.publish import (
    place_of_unpublished,
    publish,
    stage_weights,
    target_modules,
    upload_results,
    weights_kept,
)
from finetune_trainer.storage import documents
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from finetune_trainer.storage.ownership import published
from finetune_trainer.storage.stores import Stores
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.small_runs import results, tiny_llama

OURS = {"namespace": "team-a", "name": "tickets", "uid": "uid-1"}
THEIRS = {"namespace": "team-b", "name": "mails", "uid": "uid-2"}


class Recorder(JobStorage):
    """Local storage that records the order of writes. `before_manifest` runs just before the manifest is written."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, Stores(bundle, Path("none"), Path("none"), Path("none")))
        self.written: list[str] = []
        self.before_manifest: Callable[[], object] = lambda: None

    def upload_file(self, path: Path, uri: str) -> None:
        self.written.append(uri)
        super().upload_file(path, uri)

    def copy(self, uri: str, to: str) -> None:
        self.written.append(to)
        super().copy(uri, to)

    def write_bytes(self, uri: str, data: bytes, if_absent: bool = False) -> bool:
        if uri.endswith("manifest.json") and ".work" not in uri:
            self.before_manifest()
        self.written.append(uri)
        return super().write_bytes(uri, data, if_absent)


def publish_into(storage: JobStorage, bundle: Bundle, staging: Path, tokenizer_from: Path | None = None) -> Artifacts:
    model = attach_lora(tiny_llama(), bundle.spec.method, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from or bundle.spec.model.uri)
    found = results(bundle)
    stage_weights(model, tokenizer, bundle, found.serving, staging)
    return publish(storage, bundle, upload_results(storage, found, staging))


def output(bundle: Bundle) -> Path:
    return Path(bundle.spec.output.uri)


def manifest(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output(bundle) / "manifest.json").read_text())
    return found


def test_the_manifest_is_written_last(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(job=OURS)
    storage = Recorder(bundle)
    publish_into(storage, bundle, tmp_path / "staging")
    assert storage.written[-1] == f"{bundle.spec.output.uri}/manifest.json"
    assert f"{bundle.spec.output.uri}/adapter/adapter_model.safetensors" in storage.written[:-1]


def test_the_manifest_has_size_and_sha256_of_every_file(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(job=OURS)
    publish_into(open_storage(bundle), bundle, tmp_path / "staging")
    listed = {file["path"]: file for file in manifest(bundle)["files"]}
    there = {str(path.relative_to(output(bundle))): path for path in output(bundle).rglob("*") if path.is_file()}
    assert set(listed) == set(there) - {"manifest.json"}
    assert {"adapter/adapter_config.json", "adapter/tokenizer.json", "adapter/README.md"} <= set(listed)
    assert {"report.html", "samples.jsonl"} <= set(listed)
    for path, file in listed.items():
        data = there[path].read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest()), path


def test_the_manifest_names_its_job_and_its_inputs(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(job=OURS)
    publish_into(open_storage(bundle), bundle, tmp_path / "staging")
    found = manifest(bundle)
    assert {key: found["job"][key] for key in OURS} == OURS
    assert found["specDigest"] == bundle.spec_digest
    assert found["spec"]["model"]["uri"] == found["baseModel"]["uri"] == bundle.spec.model.uri
    assert found["dataset"]["digest"] == "d" * 64
    assert found["evaluation"]["tuned"]["exactMatch"] == 0.5
    assert found["versions"].keys() >= {"torch", "transformers", "peft", "finetune-operator"}
    assert (found["seed"], found["training"]["device"]) == (0, "cpu")


def test_the_status_has_the_manifests_digest(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(job=OURS)
    artifacts = publish_into(open_storage(bundle), bundle, tmp_path / "staging")
    assert artifacts.digest == hashlib.sha256(Path(artifacts.manifest).read_bytes()).hexdigest()
    assert (Path(artifacts.adapter) / "adapter_model.safetensors").exists()
    assert Path(artifacts.report).exists()


def test_the_adapter_names_its_base_model_and_carries_the_prompt_format(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle()
    publish_into(open_storage(bundle), bundle, tmp_path / "staging")
    config = json.loads((output(bundle) / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == bundle.spec.model.uri
    assert AutoTokenizer.from_pretrained(output(bundle) / "adapter").chat_template == "{{ messages }}"


def test_the_adapter_has_the_layout_that_vllm_reads(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """By the rules of PEFTHelper and parse_fine_tuned_lora_name in vllm/lora."""
    bundle = make_bundle(method={"lora": {"r": 8}})
    publish_into(open_storage(bundle), bundle, tmp_path / "staging")
    config = json.loads((output(bundle) / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["bias"], config["use_dora"], config["modules_to_save"]) == (8, "none", False, None)
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    weights = load_file(output(bundle) / "adapter" / "adapter_model.safetensors")
    for name, weight in weights.items():
        *path, side, kind = name.split(".")
        assert path[:2] == ["base_model", "model"]
        assert (path[-1] in config["target_modules"], side in ("lora_A", "lora_B"), kind) == (True, True, "weight")
        assert weight.shape[0 if side == "lora_A" else 1] == 8
    assert not [path for path in (output(bundle) / "adapter").iterdir() if path.suffix in (".bin", ".pt")]


def test_layers_are_named_in_full_if_short_names_would_match_other_layers(make_bundle: MakeBundle) -> None:
    names = ["layers.0.self_attn.q_proj"]
    model = attach_lora(tiny_llama(), Method.model_validate({"lora": {"targetModules": names}}), seed=0)
    assert target_modules(model) == ["model.layers.0.self_attn.q_proj"]


def test_the_prompt_format_names_the_template_in_the_same_folder(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    publish_into(open_storage(bundle), bundle, tmp_path / "staging")
    found = json.loads((output(bundle) / "adapter" / "prompt_format.json").read_text())
    template = output(bundle) / "adapter" / found["chatTemplate"]["file"]
    assert hashlib.sha256(template.read_bytes()).hexdigest() == found["chatTemplate"]["sha256"]


def test_publishing_sends_no_request_to_a_hub(
    make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *_: pytest.fail("PEFT asked a hub")
    )
    bundle = make_bundle(model={"uri": "s3://acme-models/base"})
    publish_into(open_storage(bundle), bundle, tmp_path / "staging", tiny_model_dir)
    config = json.loads((output(bundle) / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "s3://acme-models/base"


def test_samples_have_every_held_out_row_with_both_answers(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    publish_into(open_storage(bundle), bundle, tmp_path / "staging")
    samples = [json.loads(line) for line in (output(bundle) / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 20
    assert samples[0] == {
        "source": "rows.jsonl:0",
        "prompt": "a question",
        "expected": "answer 0",
        "base": {"answer": "miss 0", "matches": False, "truncated": False},
        "tuned": {"answer": "answer 0", "matches": True, "truncated": False},
    }


def test_the_work_prefix_is_removed(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(job=OURS)
    storage = open_storage(bundle)
    storage.write_bytes(f"{work_prefix(bundle)}/prepared/manifest.json", b"{}")
    publish_into(storage, bundle, tmp_path / "staging")
    assert not Path(work_prefix(bundle)).exists()


def test_another_jobs_results_are_neither_overwritten_nor_mixed(make_bundle: MakeBundle, tmp_path: Path) -> None:
    theirs, ours = make_bundle(job=THEIRS), make_bundle(job=OURS)
    publish_into(open_storage(theirs), theirs, tmp_path / "theirs")
    before = {path: path.read_bytes() for path in output(ours).rglob("*") if path.is_file()}
    storage = Recorder(ours)
    with pytest.raises(TrainerFailure, match="already contains the results of team-b/mails") as caught:
        publish_into(storage, ours, tmp_path / "ours")
    assert caught.value.reason is FailureReason.OUTPUT_OCCUPIED
    assert storage.written == []
    assert {path: path.read_bytes() for path in output(ours).rglob("*") if path.is_file()} == before


def test_a_job_that_published_a_moment_earlier_keeps_the_place(make_bundle: MakeBundle, tmp_path: Path) -> None:
    ours = make_bundle(job=OURS)
    storage = Recorder(ours)
    faster = json.dumps({"job": THEIRS})
    storage.before_manifest = lambda: (output(ours) / "manifest.json").write_text(faster)
    with pytest.raises(TrainerFailure, match="team-b/mails"):
        publish_into(storage, ours, tmp_path / "ours")
    assert (output(ours) / "manifest.json").read_text() == faster


def test_a_pod_that_publishes_twice_keeps_its_first_manifest(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(job=OURS)
    first = publish_into(open_storage(bundle), bundle, tmp_path / "first")
    assert published(open_storage(bundle), bundle) == manifest(bundle)
    assert publish_into(open_storage(bundle), bundle, tmp_path / "second") == first


@pytest.mark.parametrize("found", [b"", b"not json", b"[]", b"{}", b'{"job": {"uid": "uid-2"}}', b'{"job": 7}'])
def test_the_manifest_of_another_job_occupies_the_place(
    make_bundle: MakeBundle, found: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "WRITING_SECONDS", 0.5)
    bundle = make_bundle(job=OURS)
    output(bundle).mkdir()
    (output(bundle) / "manifest.json").write_bytes(found)
    with pytest.raises(TrainerFailure, match="results of another job"):
        published(open_storage(bundle), bundle)


def test_a_manifest_that_is_no_file_ends_the_publishing(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    monkeypatch.setattr(JobStorage, "write_bytes", lambda *arguments, **more: False)  # as of a link that leads nowhere
    with pytest.raises(TrainerFailure, match=r"manifest\.json is no regular file") as caught:
        publish(open_storage(bundle), bundle, {})
    assert caught.value.reason is FailureReason.OUTPUT_NOT_WRITABLE


def test_a_local_run_recognises_its_own_results_by_the_spec(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    publish_into(open_storage(bundle), bundle, tmp_path / "staging")
    assert published(open_storage(bundle), bundle) is not None
    changed = make_bundle(training={"epochs": 2})
    with pytest.raises(TrainerFailure, match="already contains"):
        published(open_storage(changed), changed)


def test_the_weights_of_another_job_with_the_same_output_stay(make_bundle: MakeBundle, tmp_path: Path) -> None:
    theirs, ours = make_bundle(job=THEIRS), make_bundle(job=OURS)
    kept = {bundle.job.uid: keep_unpublished(bundle, tmp_path) for bundle in (theirs, ours) if bundle.job}
    assert {path.read_bytes() for path in kept.values()} == {b"uid-1", b"uid-2"}, "neither has replaced the other"
    publish_into(open_storage(ours), ours, tmp_path / "staging")
    assert {uid: path.exists() for uid, path in kept.items()} == {"uid-1": False, "uid-2": True}


def keep_unpublished(bundle: Bundle, scratch: Path) -> Path:
    """Lets the job fail after its training. Returns the place of its weights."""
    assert bundle.job
    staging = scratch / bundle.job.uid
    (staging / "adapter").mkdir(parents=True)
    (staging / "adapter" / "weights").write_text(bundle.job.uid)
    with pytest.raises(TrainerFailure) as caught, weights_kept(open_storage(bundle), bundle, staging):
        raise RuntimeError("a crash")
    return Path(caught.value.message.rpartition("were saved to ")[2].rstrip(".")) / "weights"


@pytest.mark.parametrize("stopping", [False, True])
def test_a_failure_keeps_the_weights_at_the_output_unless_the_pod_has_to_stop(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopping: bool
) -> None:
    bundle = make_bundle(job=OURS)
    storage = Recorder(bundle)
    (tmp_path / "staging" / "adapter").mkdir(parents=True)
    (tmp_path / "staging" / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(termination._Stop, "requested", stopping)
    with pytest.raises(Exception) as caught, weights_kept(storage, bundle, tmp_path / "staging"):  # noqa: PT011
        raise RuntimeError("a library has swallowed StopRequested" if stopping else "a crash")
    assert (len(storage.written), "were saved to" in failure_of(caught.value).message) == (not stopping, not stopping)


def test_a_failure_after_another_pod_of_the_job_has_published_leaves_nothing(
    make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(job=OURS)
    storage = open_storage(bundle)
    (tmp_path / "staging" / "adapter").mkdir(parents=True)
    (tmp_path / "staging" / "adapter" / "weights").write_bytes(b"weights")
    publish(storage, bundle, {"job": OURS, "files": []})
    with pytest.raises(TrainerFailure) as caught, weights_kept(storage, bundle, tmp_path / "staging"):
        raise RuntimeError("a crash of a pod that was cut off")
    assert "were saved to" not in caught.value.message
    assert "lost" not in capsys.readouterr().out
    assert storage.list_folder(place_of_unpublished(bundle)) == {}
