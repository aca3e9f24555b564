"""The input of a trainer pod: one JSON file in an immutable ConfigMap, which the operator writes."""

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from finetune_api.model import ApiModel
from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import RowFiles
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.pods import scratch_size
from finetune_api.spec.profile import Claims, Hub, PreparedCache, Storage
from finetune_api.spec.resources import Memory
from finetune_api.uris import FILES, FOLDER, MODEL, misspelled

PLACE = ("gpu_type", "labels", "annotations", "priority_class_name")
"""Fields of spec.compute that decide where and how soon a job runs, and not what comes out."""


class JobIdentity(ApiModel):
    """The FineTuneJob that a pod works for."""

    namespace: str
    name: str
    uid: str
    generation: int = 1


class ResumePoint(ApiModel):
    """The earlier job of spec.resumeFrom, as the operator found it."""

    uid: str
    output: str
    """Its spec.output.uri, below which its checkpoints are."""


class Bundle(ApiModel):
    """All information that a trainer pod has about its job.

    `python -m finetune_trainer preflight BUNDLE` accepts the same file outside Kubernetes. There, URIs may be local
    paths, and `job` is not set, so no status is written. A local path whose first part contains a colon begins with
    ./ there."""

    job: JobIdentity | None = None
    spec: FineTuneJobSpec
    allow_cpu: bool = Field(default=False, alias="allowCPU")
    storages: list[Storage] = Field(default=[])
    hub: Hub | None = None
    claims: Claims | None = None
    gpu_types: list[GpuType] = Field(default=[])
    prepared_cache: PreparedCache | None = None
    scratch_size_limit: Memory | None = None
    """That of the profile, if it sets one."""
    resume: ResumePoint | None = None
    """Not set if spec.resumeFrom is not set, or if the operator no longer found the job that it names."""

    def on(self, gpu_type: str | None) -> "Bundle":
        """Return the bundle of a pod that runs on this GPU type: it has no other types. None: of a pod outside
        Kubernetes, which may run on all types that the spec allows.

        The profile may have got the type after the bundle was written. The bundle then has no type, and no price."""
        types = [gpu for gpu in allowed_gpu_types(self.spec, self.gpu_types) if gpu_type in (None, gpu.name)]
        return self.model_copy(update={"gpu_types": types})

    @property
    def scratch_size(self) -> str | None:
        """Return the size limit of the scratch volume; None outside Kubernetes, where the disk is the limit."""
        return scratch_size(self.scratch_size_limit) if self.job else None

    @property
    def spec_digest(self) -> str:
        """Return the sha256 of the fields of the spec that determine the results, as hex.

        Fields with their default value do not count, so a new field changes no digest. Nor do suspend and runPolicy,
        nor what spec.compute says about the place of the pods, nor the token for a hub."""
        compute = self.spec.compute.model_copy(update=dict.fromkeys(PLACE))
        model = self.spec.model.model_copy(update={"token_secret_ref": None})
        text = self.spec.model_copy(update={"compute": compute, "model": model}).model_dump_json(
            by_alias=True, exclude_none=True, exclude_defaults=True, exclude={"suspend", "run_policy"}
        )
        return hashlib.sha256(text.encode()).hexdigest()


class TerminationMessage(ApiModel):
    """The termination message of a trainer pod, as JSON of at most 4096 bytes."""

    reason: FailureReason | Literal["Succeeded", "Superseded"]
    message: str
    step: int | None = None
    """Last optimizer step that was done completely."""
    checkpoint_step: int | None = None
    """Optimizer step of the last checkpoint that was uploaded."""
    kept_results: int | None = None
    """Number of complete results of this job in its storage that a later attempt takes over, see status.training."""
    agreed: bool | None = None
    """Whether all processes of a training report this failure, because one has told the others. Only the launcher of
    these processes reads it."""


def storage_of(bucket: str, storages: list[Storage]) -> Storage | None:
    """Return the first storage with a pattern that matches the bucket's name; None if there is none."""
    return next((s for s in storages if any(fnmatchcase(bucket, pattern) for pattern in s.buckets)), None)


def unknown_bucket(bucket: str, profile: str, storages: list[Storage]) -> tuple[str, str]:
    """Return the finding that no storage of a profile contains the bucket, and the remedy."""
    known = ", ".join(pattern for storage in storages for pattern in storage.buckets) or "none"
    return (
        f"bucket {bucket} is in no storage of FineTuneProfile {profile}. The buckets of the profile are {known}.",
        f"Use one of these buckets, or add {bucket} to the buckets of a storage under spec.storages of the profile.",
    )


def usable_gpu_types(spec: FineTuneJobSpec, gpu_types: list[GpuType]) -> list[GpuType]:
    """Return the GPU types that the job could name: those that are whole GPUs, or all for a job on one GPU."""
    return [gpu for gpu in gpu_types if spec.compute.gpus == 1 or not gpu.is_part]


def allowed_gpu_types(spec: FineTuneJobSpec, gpu_types: list[GpuType]) -> list[GpuType]:
    """Return the usable GPU types that the job may use: the one that it names, or all. For an unknown name there are
    none."""
    return [gpu for gpu in usable_gpu_types(spec, gpu_types) if spec.compute.gpu_type in (None, gpu.name)]


def no_gpu_type(spec: FineTuneJobSpec, gpu_types: list[GpuType]) -> tuple[str, str] | None:
    """Return the finding that the job may use none of the GPU types of its profile, and the remedy.

    None if it may use one, or if there are no GPU types and it names none."""
    asked, profile = spec.compute.gpu_type, spec.profile_name
    named = [gpu for gpu in gpu_types if asked in (None, gpu.name)]
    if allowed_gpu_types(spec, gpu_types) or (asked is None and not named):
        return None
    if not named:
        known = ", ".join(gpu.name for gpu in gpu_types) or "none"
        return (
            f'spec.compute.gpuType: FineTuneProfile {profile} has no GPU type "{asked}". Its GPU types are {known}.',
            "Use one of these names, or remove spec.compute.gpuType: the job then uses the cheapest type that fits.",
        )
    parts = ", ".join(f"{gpu.name} ({gpu.resource_name})" for gpu in named)
    compute = spec.compute
    field, number = ("gpusPerNode", compute.gpus_per_node) if compute.gpus_per_node > 1 else ("nodes", compute.nodes)
    return (
        f"spec.compute.{field} is {number}, but in FineTuneProfile {profile} the job may use "
        f"only MIG instances or shared GPUs: {parts}. Several processes cannot train together on them.",
        f"Set spec.compute.{field} to 1, or use a GPU type that is a whole GPU.",
    )


def bucket_of(uri: str) -> str | None:
    """Return the bucket of an s3:// URI; None for a local path."""
    return uri.removeprefix("s3://").split("/", 1)[0] if uri.startswith("s3://") else None


def uris_of(spec: FineTuneJobSpec) -> dict[str, str]:
    """Return every URI in the spec by its field: models, sources and output."""
    sources = {f"{field}.uri": files.uri for field, files in sources_of(spec).items()}
    return {**models_of(spec), **sources, "spec.output.uri": spec.output.uri}


def misspelled_of(spec: FineTuneJobSpec) -> Iterator[tuple[str, str, str]]:
    """Yield the field, the URI and the end of a sentence for each URI that the API server would refuse."""
    files = {f"{field}.uri" for field in sources_of(spec)}
    for field, uri in uris_of(spec).items():
        shape = FILES if field in files else MODEL if field == "spec.model.uri" else FOLDER
        if wrong := misspelled(uri, shape):
            yield field, uri, wrong


def models_of(spec: FineTuneJobSpec) -> dict[str, str]:
    """Return the URIs of the folders with weights that a job reads, by their fields.

    These are the base model, the adapter to continue from, and the sentence embedding model."""
    adapter, embedding = spec.method.lora.from_, spec.dataset.deduplicate.embedding_model
    return {
        "spec.model.uri": spec.model.uri,
        **({"spec.method.lora.from": adapter} if adapter else {}),
        **({"spec.dataset.deduplicate.embeddingModel.uri": embedding.uri} if embedding else {}),
    }


def sources_of(spec: FineTuneJobSpec) -> dict[str, RowFiles]:
    """Return all files with rows, by their fields."""
    dataset = spec.dataset
    sides = {"train": dataset.train, "validation": dataset.validation or [], "test": dataset.test or []}
    sources: dict[str, RowFiles] = {
        f"spec.dataset.{side}[{i}]": source for side, named in sides.items() for i, source in enumerate(named)
    }
    return sources | {f"spec.evaluation.regression[{i}]": s for i, s in enumerate(spec.evaluation.regression or [])}
