"""Publishes the results to output.uri.

manifest.json is written last, and only if none exists. It shows that the results are complete and names their job."""

import hashlib
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from pydantic import BaseModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.method import MethodType
from finetune_api.status.job import Artifacts
from finetune_trainer.evaluation.table import evaluation_table
from finetune_trainer.handover.prepared_place import owner_of, work_prefix
from finetune_trainer.pod.failure import Superseded, TrainerFailure, failure_of
from finetune_trainer.pod.termination import stop_requested
from finetune_trainer.results.model_card import model_card
from finetune_trainer.results.placing import as_bytes, place
from finetune_trainer.results.report import report_page
from finetune_trainer.results.results import Results, versions
from finetune_trainer.results.serving import Serving
from finetune_trainer.sizing.host_memory import FILE_BYTES
from finetune_trainer.statistics.measurements import Answer
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.storage.local_files import sha256_of
from finetune_trainer.storage.ownership import MANIFEST, published

ADAPTER, MODEL, MERGED, REPORT, SAMPLES, PROMPT_FORMAT = (
    "adapter",
    "model",
    "merged",
    "report.html",
    "samples.jsonl",
    "prompt_format.json",
)
UNPUBLISHED = "unpublished"
"""Folder below output.uri for the tuned weights of jobs that failed after their training, each in a folder of its own:
another job may publish to the same output.uri. No other pod of the job publishes there."""


def stage_weights(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bundle: Bundle,
    serving: Serving,
    staging: Path,
) -> LoraConfig | None:
    """Writes the tuned weights and the tokenizer to the folder `staging`.

    With LoRA and QLoRA: writes an adapter in the layout that PEFT and vLLM load, and returns its settings. With Full:
    writes the whole model in Transformers' layout, and returns None."""
    adapter = stage_adapter(model, bundle, staging / ADAPTER) if isinstance(model, PeftModel) else None
    if adapter is None:
        # Servers read the end tokens from this file. save_pretrained rejects some models' own file.
        ends = list(serving.stop_tokens)
        model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
        # By default only rank 0 would write, but the ranks of each node may read the files of their own node.
        model.should_save_on_this_rank = lambda is_main_process: is_main_process
        model.save_pretrained(staging / MODEL, max_shard_size=FILE_BYTES)
    tokenizer.chat_template = serving.chat_template
    tokenizer.save_pretrained(staging / (ADAPTER if adapter else MODEL))
    return adapter


def stage_adapter(model: PeftModel, bundle: Bundle, folder: Path) -> LoraConfig:
    """Writes the adapter to `folder`. Returns its settings."""
    config = model.peft_config["default"]
    # PEFT and servers look for the base model under this name. A model on a hub has its repository's name.
    config.base_model_name_or_path = bundle.spec.model.uri.removeprefix("hf://").rstrip("/")
    config.target_modules = target_modules(model)
    config.target_parameters = sorted(config.target_parameters or []) or None
    # By default PEFT asks a hub whether the vocabulary was extended.
    model.save_pretrained(folder, save_embedding_layers=False)
    return config


@contextmanager
def weights_kept(storage: JobStorage, bundle: Bundle, staging: Path) -> Iterator[None]:
    """Keeps the tuned weights in the folder `staging` when the code inside the context fails.

    Uploads the weights below output.uri, apart from results. Raises a TrainerFailure whose message names their place.
    Without this, a failed evaluation would lose hours of GPU time. After SIGTERM there is no time for the upload, also
    if a library has turned the stop into an error of its own."""
    try:
        yield
    except Superseded:
        raise
    except Exception as error:
        if stop_requested():
            raise
        failure = failure_of(error)
        if failure is not error:
            traceback.print_exception(error)
        folder = next(staging / name for name in (ADAPTER, MODEL) if (staging / name).is_dir())
        try:
            has_published = published(storage, bundle)  # by another pod of the job, while this one was cut off
            files = [] if has_published else sorted(path for path in folder.rglob("*") if path.is_file())
            for path in files:
                storage.upload_file(path, join(place_of_unpublished(bundle), str(path.relative_to(staging))))
        except Exception as unkept:
            print(f"The tuned weights could not be uploaded and are lost: {failure_of(unkept).message}", flush=True)
            raise failure from error
        if has_published:
            raise failure from error
        saved = join(place_of_unpublished(bundle), folder.name)
        kept = f"{failure.finding.rstrip('.')}. The tuned weights were saved to {saved}."
        raise TrainerFailure(failure.reason, kept, failure.remedy, step=failure.step) from error


def place_of_unpublished(bundle: Bundle) -> str:
    """Returns the URI of the folder for the weights of a failed attempt of this job."""
    return join(bundle.spec.output.uri, UNPUBLISHED, owner_of(bundle))


def upload_results(storage: JobStorage, results: Results, staging: Path) -> Mapping[str, Any]:
    """Writes the report, samples and model cards into the folder `staging`, which already has the weights. Then places
    the results at output.uri.

    Returns the content of their manifest. It is that of another pod of the job if that was faster. Raises
    TrainerFailure OutputOccupied if another job has published to output.uri."""
    stage_pages(results, staging)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    return place(storage, results.bundle, files, staging, manifest(results, staging, files))


def publish(storage: JobStorage, bundle: Bundle, placed: Mapping[str, Any]) -> Artifacts:
    """Writes the manifest `placed`, whose files are already at output.uri. Then deletes the job's work prefix.

    Raises TrainerFailure OutputOccupied if another job has published to output.uri."""
    uri, content = join(bundle.spec.output.uri, MANIFEST), as_bytes(placed)

    def is_there() -> bool:
        return storage.write_bytes(uri, content, if_absent=True) or published(storage, bundle) is not None

    # Again, because another pod may just have deleted a manifest whose writer was killed.
    if not (is_there() or is_there()):
        raise TrainerFailure(
            FailureReason.OUTPUT_NOT_WRITABLE,
            f"{uri} is no regular file, so the results cannot be published.",
            "Delete it.",
        )
    try:
        storage.delete_prefix(work_prefix(bundle))
        storage.delete_prefix(place_of_unpublished(bundle))
    except TrainerFailure as failure:  # The results are complete. Leftover prepared data must not fail the job.
        print(f"The prepared data could not be deleted: {failure.message}", flush=True)
    return published_artifacts(storage, bundle)


def target_modules(model: PeftModel) -> list[str]:
    """Returns the sorted names of the layers that have an adapter.

    A name is shortened to its last part (`q_proj`), as servers expect, if the short names match exactly these layers.
    PEFT keeps the names in a set, whose order differs between processes. For all-linear it lists every single layer."""
    adapted = set(model.targeted_module_names)
    ends = {name.rpartition(".")[2] for name in adapted}
    named = {name for name, _ in model.get_base_model().named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if named == adapted else adapted)


def stage_pages(results: Results, staging: Path) -> None:
    """Writes the report and the samples, and a model card and the prompt format into each folder with weights."""
    (staging / REPORT).write_text(report_page(results), encoding="utf-8")
    lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples(results))
    (staging / SAMPLES).write_text("".join(lines), encoding="utf-8")
    prompt_format = json.dumps(results.serving.as_json(), indent=2, ensure_ascii=False)
    for name in (ADAPTER, MODEL, MERGED):
        if (staging / name).is_dir():
            (staging / name / "README.md").write_text(model_card(results, name), encoding="utf-8")
            (staging / name / PROMPT_FORMAT).write_text(prompt_format, encoding="utf-8")


def samples(results: Results) -> list[dict[str, Any]]:
    """Returns the lines of samples.jsonl: each held-out row with the expected answer and the models' answers.

    `prompted` has the base model's answers with few-shot examples in the prompt, one for each draw of examples."""
    few_shot = results.assessment.baselines.few_shot
    found = []
    for row, (example, base, tuned) in enumerate(results.answered):
        sample = {"source": example.place, "prompt": example.prompt, "expected": example.answer}
        answers = {"base": _answer(base), "tuned": _answer(tuned)}
        prompted = {"prompted": [_answer(draw[row]) for draw in few_shot.draws]} if few_shot else {}
        found.append(sample | answers | prompted)
    return found


def _answer(answer: Answer) -> dict[str, Any]:
    return {"answer": answer.text, "matches": answer.matches, "truncated": answer.truncated}


def manifest(results: Results, folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Returns the content of manifest.json: the results, and the inputs and software that produced them."""
    bundle, prepared = results.bundle, results.prepared
    uri, commit = bundle.spec.model.uri, prepared.commit_of(bundle.spec.model.uri)
    pinned = {"commit": commit} if commit else {}
    return {
        "job": _json(bundle.job) if bundle.job else None,
        "creationTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "spec": _json(bundle.spec),
        "specDigest": bundle.spec_digest,
        "baseModel": {"uri": uri, **pinned, "parameters": prepared.resolved.parameters},
        "dataset": _json(prepared.preflight),
        "resolved": _json(prepared.resolved),
        "seed": bundle.spec.training.seed,
        "training": _json(results.training) | {"seconds": round(results.training_seconds, 1)},
        "evaluation": _json(results.evaluation),
        "comparison": evaluation_table(results.comparison),
        "versions": versions(),
        "files": [_described(path, folder) for path in files],
    }


def published_artifacts(storage: JobStorage, bundle: Bundle) -> Artifacts:
    """Returns the URIs of the published results and the manifest's sha256."""
    output, full = bundle.spec.output.uri, bundle.spec.method.type is MethodType.FULL
    return Artifacts(
        adapter=None if full else join(output, ADAPTER),
        model=join(output, MODEL) if full else None,
        merged=join(output, MERGED) if bundle.spec.output.merge else None,
        report=join(output, REPORT),
        manifest=join(output, MANIFEST),
        digest=hashlib.sha256(storage.read_bytes(join(output, MANIFEST))).hexdigest(),
    )


def _json(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(mode="json", by_alias=True, exclude_none=True)


def _described(path: Path, folder: Path) -> dict[str, Any]:
    return {"path": str(path.relative_to(folder)), "size": path.stat().st_size, "sha256": sha256_of(path)}
