"""The jobs that are run: few, so that each sets many fields. Together they set every field (`test_fields`)."""

from typing import Any

from tests.integration.finetune_trainer.as_the_pod_runs.pod import DATA
from tests.integration.finetune_trainer.as_the_pod_runs.readings import READINGS

Spec = dict[str, Any]


HUB_MODEL, HUB_REVISION, HUB_ROWS = "acme/gated-base", "v1", "acme/sums"
"""What the hub of the tests has: a gated model with this tag, and a data set."""


def _job(name: str, train: Any, **parts: Any) -> Spec:
    """A job over one training file, or over these sources."""
    dataset = {"train": [{"uri": f"{DATA}/{train}"}] if isinstance(train, str) else train}
    dataset |= parts.pop("dataset", {})
    return {
        "model": {"uri": f"{DATA}/base"},
        "dataset": dataset,
        "output": {"uri": f"{DATA}/out/{name}"} | parts.pop("output", {}),
    } | parts


def _source(file: str, **parts: Any) -> Spec:
    return {"uri": f"{DATA}/{file}"} | parts


PREFLIGHTS: dict[str, Spec] = {
    "reading": _job(
        "reading",
        [_source(name, **reading.source) for name, reading in READINGS.items()],
        dataset={
            "test": [_source("few-sums.jsonl", name="named-test")],
            "validation": [_source("few-labels.jsonl")],
            "deduplicate": {"near": "Keep"},
        },
    ),
    "cleaning": _job(
        "cleaning",
        "dirty.jsonl",
        dataset={
            "clean": {
                "mojibake": "Repair",
                "unicode": "NFKC",
                "remove": [r"(?m)^Sent from my \w+$"],
                "whitespace": "Collapse",
                "mask": ["Email", "Card", "Phone"],
                "phoneRegions": ["DE"],
            },
            "deduplicate": {"near": "Drop", "threshold": 0.7},
            "maxInvalidFraction": 0.1,
        },
    ),
    "trimming": _job(
        "trimming",
        "dirty.jsonl",
        dataset={"clean": {"unicode": "Keep", "whitespace": "Trim"}, "maxInvalidFraction": 0.1},
    ),
    "too-long": _job("too-long", "sums.jsonl", dataset={"overlength": "Fail"}, training={"maxSequenceLength": 16}),
    "meaning-grouped": _job(
        "meaning-grouped",
        "twins.jsonl",
        dataset={"deduplicate": {"embeddingModel": {"uri": f"{DATA}/sentence-model"}, "threshold": 0.999}},
    ),
    "meaning-dropped": _job(
        "meaning-dropped",
        "twins.jsonl",
        dataset={
            "deduplicate": {"near": "Drop", "embeddingModel": {"uri": f"{DATA}/sentence-model"}, "threshold": 0.999}
        },
    ),
}
"""Jobs whose preflight is all that is run."""

LORA = {"r": 4, "alpha": 8, "useRslora": True, "useDora": True}
SHORT = {"maxRows": 6, "generation": {"maxNewTokens": 4}}
TRAININGS: dict[str, Spec] = {
    "lora": _job(
        "lora",
        "sums.jsonl",
        method={
            "type": "LoRA",
            "lora": LORA | {"dropout": 0.1, "targetModules": ["q_proj", "down_proj"], "bias": "LoraOnly"},
        },
        dataset={"split": {"test": 0.1, "validation": 0.2, "seed": 3}},
        training={
            "epochs": 4,
            "learningRate": 0.01,
            "scheduler": "Linear",
            "warmupRatio": 0.1,
            "weightDecay": 0.1,
            "maxGradNorm": 0.5,
            "globalBatchSize": 4,
            "microBatchTokens": 64,
            "gradientCheckpointing": "Enabled",
            "maxSequenceLength": 64,
            "evaluateEvery": 2,
            # No loss falls by a hundred nats: the second measurement is the last one.
            "earlyStopping": {"patience": 1, "minDelta": 100},
            "publish": "Best",
            "seed": 5,
            "checkpoint": {"every": 1, "keep": 1},
        },
        evaluation=SHORT
        | {
            "metrics": ["TokenF1", "ExactMatch", "ROUGE1", "ROUGE2", "ROUGEL", "BLEU"],
            "gates": [
                {"metric": "Loss", "max": 1000, "min": 0.001, "minGainOver": {"base": -1000}},
                {"metric": "TokenF1", "minGainOver": {"base": -1, "fewShot": -1}},
            ],
            "regression": [
                _source(
                    "general.json",
                    name="general",
                    format="PromptCompletion",
                    columns={"prompt": "question", "completion": "answer"},
                    metric="Loss",
                    maxDrop=1000,
                )
            ],
        },
        output={"merge": True},
        compute={"gpusPerNode": 2},
    ),
    "qlora": _job(
        "qlora",
        [_source("objects.jsonl", weight=1), _source("long-objects.jsonl", weight=999)],
        method={
            "type": "QLoRA",
            "lora": {"bias": "All", "modulesToSave": ["lm_head"]},
            "quantization": {"type": "FP4", "doubleQuant": False, "computeDtype": "Float32"},
        },
        training={
            "maxSteps": 3,
            "scheduler": "Constant",
            "optimizer": "PagedAdamW8bit",
            "gradientCheckpointing": "Disabled",
            "lossOn": "All",
        },
        evaluation=SHORT
        | {
            "metrics": ["FieldMatch", "ValidJSON"],
            "baselines": ["Base"],
            "gates": [{"metric": "FieldMatch", "min": 0.99}],
        },
    ),
    "nf4": _job(
        "nf4",
        "sums.jsonl",
        method={"type": "QLoRA", "quantization": {"type": "NF4", "computeDtype": "BFloat16"}},
        training={"maxSteps": 1},
        evaluation=SHORT | {"baselines": ["Base"]},
    ),
    "nodes": _job(
        "nodes",
        "sums.jsonl",
        method={"lora": {"r": 4}},
        training={"maxSteps": 4},
        evaluation=SHORT | {"baselines": ["Base"]},
        output={"merge": True},
        compute={"nodes": 2},
    ),
    "full": _job(
        "full",
        [_source("texts.jsonl", format="Text")],
        method={"type": "Full"},
        training={"publish": "Last", "maxSteps": 3, "learningRate": 0.01},
        evaluation={"metrics": ["Perplexity", "Loss"], "maxRows": 6},
    ),
    "continued": _job(
        "continued",
        "labels.jsonl",
        method={"type": "LoRA", "lora": LORA | {"bias": "LoraOnly", "from": f"{DATA}/out/lora/adapter"}},
        training={"learningRate": 0.01},
        evaluation=SHORT | {"metrics": ["ExactMatch", "MacroF1", "MacroPrecision", "MacroRecall"]},
    ),
    "resumed": _job(
        "resumed",
        "sums.jsonl",
        method={"type": "LoRA"},
        training={"epochs": 4, "globalBatchSize": 4},
        evaluation=SHORT | {"baselines": ["Base"]},
        resumeFrom={"name": "stopped"},
    ),
    "none": _job(
        "none",
        "sums.jsonl",
        method={"type": "None", "lora": {"from": f"{DATA}/out/lora/adapter"}},
        evaluation=SHORT,
        compute={
            "memory": "3Gi",
            "gpuType": "any",
            "labels": {"team": "search"},
            "annotations": {"note": "only evaluates"},
            "priorityClassName": "batch",
        },
    ),
    "hub": _job(
        "hub",
        [{"uri": f"hf://datasets/{HUB_ROWS}/data/*.jsonl"}],
        model={
            "uri": f"hf://{HUB_MODEL}",
            "revision": HUB_REVISION,
            "tokenSecretRef": {"name": "hub-token", "key": "token"},
        },
        training={"maxSteps": 2},
        evaluation={"maxRows": 6, "baselines": ["Base"], "generation": {"maxNewTokens": 4}},
    ),
    "auto": _job("auto", "sums.jsonl", training={"maxSteps": 1}, evaluation={"maxRows": 6, "baselines": ["Base"]}),
}
"""Jobs that are run from preflight to published results, in this order: later ones read what earlier ones published."""

STOPPED = {**TRAININGS["resumed"], "output": {"uri": f"{DATA}/out/stopped"}}
"""The job that `resumed` resumes from: the same one without resumeFrom. It is stopped after its first step."""
del STOPPED["resumeFrom"]

CASES = PREFLIGHTS | TRAININGS
