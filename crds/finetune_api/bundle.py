"""What the operator hands to a trainer pod: an immutable ConfigMap with one JSON file."""

import hashlib
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from finetune_api.model import ApiModel
from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import RowFiles
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import GpuType, Storage


class JobIdentity(ApiModel):
    """Which FineTuneJob a pod works for."""

    namespace: str
    name: str
    uid: str
    generation: int = 1


class Bundle(ApiModel):
    """Everything a trainer pod knows of its job. `python -m finetune_trainer preflight BUNDLE` takes the same file
    outside Kubernetes, where URIs may be local paths and `job` is left out: then nothing writes a status."""

    job: JobIdentity | None = None
    spec: FineTuneJobSpec
    allow_cpu: bool = Field(default=False, alias="allowCPU")
    storages: list[Storage] = Field(default=[])
    gpu_types: list[GpuType] = Field(default=[])

    @property
    def spec_digest(self) -> str:
        """sha256 of the spec, defaults included, as hex."""
        return hashlib.sha256(self.spec.model_dump_json(by_alias=True, exclude_none=True).encode()).hexdigest()


class TerminationMessage(ApiModel):
    """What a trainer pod leaves in its termination log, as JSON of at most 4096 bytes."""

    reason: FailureReason | Literal["Succeeded", "Superseded"]
    message: str
    step: int | None = None


def storage_of(bucket: str, storages: list[Storage]) -> Storage | None:
    """The first storage one of whose patterns matches the bucket's name."""
    return next((s for s in storages if any(fnmatchcase(bucket, pattern) for pattern in s.buckets)), None)


def bucket_of(uri: str) -> str | None:
    """The bucket of an s3:// URI; None for a local path."""
    return uri.removeprefix("s3://").split("/", 1)[0] if uri.startswith("s3://") else None


def uris_of(spec: FineTuneJobSpec) -> dict[str, str]:
    """Every URI the spec names, by its field: models, sources, output."""
    sources = {f"{field}.uri": files.uri for field, files in sources_of(spec).items()}
    return {**models_of(spec), **sources, "spec.output.uri": spec.output.uri}


def models_of(spec: FineTuneJobSpec) -> dict[str, str]:
    """URIs of the folders with weights that a job reads, by their fields: base model, adapter to continue from,
    sentence model."""
    adapter, embedding = spec.method.lora.from_, spec.dataset.deduplicate.embedding_model
    return {
        "spec.model.uri": spec.model.uri,
        **({"spec.method.lora.from": adapter} if adapter else {}),
        **({"spec.dataset.deduplicate.embeddingModel.uri": embedding.uri} if embedding else {}),
    }


def sources_of(spec: FineTuneJobSpec) -> dict[str, RowFiles]:
    """Everything rows are read from, by its field."""
    dataset = spec.dataset
    sides = {"train": dataset.train, "validation": dataset.validation or [], "test": dataset.test or []}
    sources: dict[str, RowFiles] = {
        f"spec.dataset.{side}[{i}]": source for side, named in sides.items() for i, source in enumerate(named)
    }
    return sources | {f"spec.evaluation.regression[{i}]": s for i, s in enumerate(spec.evaluation.regression or [])}
