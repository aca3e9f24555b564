"""The results at output.uri. manifest.json is written last and only where there is none: it alone says that the rest is
whole, and whose it is."""

import hashlib
import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from pydantic import BaseModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.bundle import Bundle
from finetune_api.spec.method import MethodType
from finetune_api.status.job import Artifacts
from finetune_trainer.evaluation.table import evaluation_table
from finetune_trainer.handover.prepared import work_prefix
from finetune_trainer.pod.failure import Superseded, TrainerFailure, failure_of
from finetune_trainer.pod.ownership import MANIFEST, published
from finetune_trainer.pod.storage import JobStorage, join
from finetune_trainer.results.merge import SHARD_SIZE
from finetune_trainer.results.model_card import model_card
from finetune_trainer.results.report import report_page
from finetune_trainer.results.results import Results, versions
from finetune_trainer.results.serving import Serving
from finetune_trainer.statistics.measurements import Answer

ADAPTER, MODEL, MERGED, REPORT, SAMPLES, PROMPT_FORMAT = (
    "adapter",
    "model",
    "merged",
    "report.html",
    "samples.jsonl",
    "prompt_format.json",
)


def stage_weights(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bundle: Bundle,
    serving: Serving,
    staging: Path,
) -> LoraConfig | None:
    """Writes what was tuned and the tokenizer to `staging`: an adapter in the layout PEFT and vLLM load, returning its
    settings, or under Full the whole model in Transformers' layout."""
    adapter = stage_adapter(model, bundle, staging / ADAPTER) if isinstance(model, PeftModel) else None
    if adapter is None:
        # Servers take their end tokens from this file; some models' own is refused by save_pretrained.
        ends = list(serving.stop_tokens)
        model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
        model.save_pretrained(staging / MODEL, max_shard_size=SHARD_SIZE)
    tokenizer.chat_template = serving.chat_template
    tokenizer.save_pretrained(staging / (ADAPTER if adapter else MODEL))
    return adapter


def stage_adapter(model: PeftModel, bundle: Bundle, folder: Path) -> LoraConfig:
    """Writes the adapter to `folder`. Returns its settings."""
    config = model.peft_config["default"]
    # Where PEFT, and a server, look for the base model: on a hub by its name there.
    config.base_model_name_or_path = bundle.spec.model.uri.removeprefix("hf://")
    config.target_modules = target_modules(model)
    # Left to itself PEFT asks a hub whether the vocabulary has grown.
    model.save_pretrained(folder, save_embedding_layers=False)
    return config


@contextmanager
def weights_kept(storage: JobStorage, bundle: Bundle, staging: Path) -> Iterator[None]:
    """What fails inside does not cost the weights in the folder `staging`, and the hours of a GPU that lie in them:
    they go where publishing would put them, without a manifest, and the failure says so. SIGTERM leaves no time for
    it."""
    try:
        yield
    except Superseded:
        raise
    except Exception as error:
        failure = failure_of(error)
        if failure is not error:
            traceback.print_exception(error)
        folder = next(staging / name for name in (ADAPTER, MODEL) if (staging / name).is_dir())
        try:
            published(storage, bundle)
            upload(storage, sorted(path for path in folder.rglob("*") if path.is_file()), staging, bundle)
        except Exception as unkept:
            print(f"The tuned weights are lost: {failure_of(unkept).message}", flush=True)
            raise failure from error
        kept = f"{failure.message.rstrip('.')}. What was tuned is kept in {join(bundle.spec.output.uri, folder.name)}."
        raise TrainerFailure(failure.reason, kept, failure.step) from error


def upload(storage: JobStorage, files: Sequence[Path], staging: Path, bundle: Bundle) -> None:
    """Copies files below `staging` to output.uri, each as it lies there."""
    for path in files:
        storage.upload_file(path, join(bundle.spec.output.uri, str(path.relative_to(staging))))


def upload_results(storage: JobStorage, results: Results, staging: Path) -> list[Path]:
    """Writes report, samples and model card beside the weights that are in the folder `staging` already, and uploads
    all of it. Returns the files. Raises TrainerFailure OutputOccupied where another job was faster."""
    stage_pages(results, staging)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    published(storage, results.bundle)
    upload(storage, files, staging, results.bundle)
    return files


def publish(storage: JobStorage, results: Results, staging: Path, files: Sequence[Path]) -> Artifacts:
    """Writes the manifest of `files`, which are uploaded; then removes the job's work prefix. Raises TrainerFailure
    OutputOccupied where another job was faster."""
    bundle = results.bundle
    data = json.dumps(manifest(results, staging, files), indent=2, ensure_ascii=False).encode()
    if not storage.write_bytes(join(bundle.spec.output.uri, MANIFEST), data, if_absent=True):
        published(storage, bundle)
    try:
        storage.delete_prefix(work_prefix(bundle))
    except TrainerFailure as failure:  # the results are whole: what is left over does not make them a failure
        print(f"The prepared data is left behind: {failure.message}", flush=True)
    return published_artifacts(storage, bundle)


def target_modules(model: PeftModel) -> list[str]:
    """The layers with an adapter, by the ends of their names, as servers know them, where that says the same; sorted.
    PEFT holds them as a set, in another order in every process, and spells all-linear out layer by layer."""
    adapted = set(model.targeted_module_names)
    ends = {name.rpartition(".")[2] for name in adapted}
    named = {name for name, _ in model.get_base_model().named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if named == adapted else adapted)


def stage_pages(results: Results, staging: Path) -> None:
    """Writes what people read, and the prompt format in each folder with weights."""
    (staging / REPORT).write_text(report_page(results), encoding="utf-8")
    lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples(results))
    (staging / SAMPLES).write_text("".join(lines), encoding="utf-8")
    prompt_format = json.dumps(results.serving.as_json(), indent=2, ensure_ascii=False)
    for name in (ADAPTER, MODEL, MERGED):
        if (staging / name).is_dir():
            (staging / name / "README.md").write_text(model_card(results, name), encoding="utf-8")
            (staging / name / PROMPT_FORMAT).write_text(prompt_format, encoding="utf-8")


def samples(results: Results) -> list[dict[str, Any]]:
    """Each held-out row with what was expected and the models' answers; `prompted`: the base model's after examples,
    one for each draw."""
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
    """What the results are, and what they were made from and with."""
    bundle, prepared = results.bundle, results.prepared
    return {
        "job": _json(bundle.job) if bundle.job else None,
        "creationTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "spec": _json(bundle.spec),
        "specDigest": bundle.spec_digest,
        "baseModel": {"uri": bundle.spec.model.uri, "parameters": prepared.resolved.parameters},
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
    """Where the published results lie."""
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
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path.relative_to(folder)), "size": path.stat().st_size, "sha256": digest}
