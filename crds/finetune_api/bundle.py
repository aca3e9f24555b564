"""What the operator hands to a trainer pod: an immutable ConfigMap with one JSON file."""

import hashlib
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from finetune_api.job import FineTuneJobSpec
from finetune_api.model import ApiModel
from finetune_api.profile import GpuType, Storage
from finetune_api.reasons import FailureReason


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
    """Every URI the spec names, by its field: model, adapter to continue from, sources, sentence model, output."""
    dataset, adapter = spec.dataset, spec.method.lora.from_
    models = {"spec.model.uri": spec.model.uri} | ({"spec.method.lora.from": adapter} if adapter else {})
    sources = {f"spec.dataset.train[{i}].uri": source.uri for i, source in enumerate(dataset.train)}
    for side, named in (("validation", dataset.validation), ("test", dataset.test)):
        sources |= {f"spec.dataset.{side}[{i}].uri": source.uri for i, source in enumerate(named or [])}
    if embedding := dataset.deduplicate.embedding_model:
        sources["spec.dataset.deduplicate.embeddingModel.uri"] = embedding.uri
    for i, each in enumerate(spec.evaluation.regression or []):
        sources[f"spec.evaluation.regression[{i}].uri"] = each.uri
    return {**models, **sources, "spec.output.uri": spec.output.uri}
