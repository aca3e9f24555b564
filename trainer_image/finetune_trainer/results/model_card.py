"""Builds the model card: README.md in the folder of the published weights, with metadata for model hubs."""

from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard import metadata_load

from finetune_api.status.evaluation import Metrics
from finetune_trainer.evaluation.gates import shortfall
from finetune_trainer.results.pages import template
from finetune_trainer.results.report_results import metrics_table
from finetune_trainer.results.report_tables import method_text
from finetune_trainer.results.results import Results
from finetune_trainer.results.serving import QUESTION, vllm_of

LICENSE = ("license", "license_name", "license_link")


def base_license(folder: Path) -> dict[str, str]:
    """Returns the licence fields of the base model's own card. Empty if the card names no licence."""
    try:
        found = metadata_load(folder / "README.md") or {}
    except Exception:  # There is no card, or its YAML is broken and the parser raises any kind of error.
        return {}
    return {key: found[key] for key in LICENSE if isinstance(found.get(key), str)}


def model_card(results: Results, weights: str) -> str:
    """Returns the model card for the folder `weights`: "adapter", "model" (method Full) or "merged"."""
    bundle, prepared = results.bundle, results.prepared
    return template("model_card.md.j2").render(
        results=results,
        name=name_of(results),
        front_matter=front_matter(results, weights),
        weights=weights,
        method=method_text(bundle.spec.method, prepared.resolved.method),
        spec=bundle.spec,
        base_commit=prepared.commit_of(bundle.spec.model.uri),
        job=bundle.job,
        spec_digest=bundle.spec_digest,
        serving=results.serving,
        question=QUESTION,
        vllm=vllm_of(results.adapter, results.quantization) if results.adapter else None,
        quantization=results.quantization if weights == "adapter" else None,
        resolved=prepared.resolved,
        data=prepared.preflight,
        training=results.training,
        evaluation=results.evaluation,
        shortfall=shortfall(results.evaluation),
        table=metrics_table(results),
    )


def front_matter(results: Results, weights: str) -> str:
    """Returns the card's metadata as YAML without the `---` lines (https://huggingface.co/docs/hub/model-cards)."""
    uri = results.bundle.spec.model.uri
    evaluation = results.evaluation
    tuned = evaluation.tuned or Metrics()
    merged = evaluation.merged if weights == "merged" else None
    figures = {
        "exact_match": ("Exact match", tuned.exact_match),
        "loss": (
            "Loss, nats per token",
            merged.loss if merged else tuned.loss,
        ),
    }
    data = ModelCardData(
        # A hub accepts only the name of one of its own repositories.
        base_model=uri.removeprefix("hf://").rstrip("/") if uri.startswith("hf://") else None,
        base_model_relation={"adapter": "adapter", "model": "finetune", "merged": "merge"}[weights],
        library_name="peft" if weights == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["finetune-operator"] if weights == "model" else ["lora", "finetune-operator"],
        model_name=name_of(results),
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type="held-out",
                dataset_name=f"{evaluation.rows} held-out rows",
                metric_type=type,
                metric_name=name,
                metric_value=value,
            )
            for type, (name, value) in figures.items()
            if value is not None
        ],
        **cast(dict[str, Any], results.base_license),
    )
    return str(data.to_yaml()).strip()


def name_of(results: Results) -> str:
    """Returns the name of the published model: the job's name, or "tuned" for a local run."""
    return results.bundle.job.name if results.bundle.job else "tuned"
