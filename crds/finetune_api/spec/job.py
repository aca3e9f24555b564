"""The spec of a FineTuneJob, which the tenant writes."""

import re
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import (
    ApiModel,
    DataKey,
    DnsLabel,
    ObjectName,
    SchemaKeys,
    data_key,
    dns_label,
    object_name,
    rules,
)
from finetune_api.quantity import times
from finetune_api.spec.dataset import Dataset
from finetune_api.spec.evaluation import Evaluation
from finetune_api.spec.gpu_type import GpuTypeName
from finetune_api.spec.method import Method
from finetune_api.spec.pods import PriorityClassName
from finetune_api.spec.resources import Cpu, Memory
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.spec.scheduling import PodAnnotations, PodLabels
from finetune_api.spec.training import Training
from finetune_api.uris import ModelUri, PrefixUri


class TokenSecretRef(ApiModel):
    """One key of a Secret in the job's namespace."""

    name: Annotated[
        ObjectName,
        object_name("the name of a Secret, for example hub-token"),
    ]
    """Name of the Secret."""
    key: Annotated[
        DataKey,
        data_key("a key of the Secret, for example HF_TOKEN"),
    ]
    """Key in the Secret whose value is the token."""


_OTHER_KINDS = "^hf://(datasets|spaces|buckets|kernels)/"
_NO_MODEL = "uri must name a model on the hub as hf://ORG/NAME; files of a data set belong in spec.dataset"


class Model(ApiModel):
    """The base model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (f"!self.uri.matches('{_OTHER_KINDS}')", _NO_MODEL),
            *(
                (
                    f"!has(self.{field}) || self.uri.startsWith('hf://')",
                    f"{field} needs a model on a hub, hf://ORG/NAME: remove {field}, or change uri",
                )
                for field in ("revision", "tokenSecretRef")
            ),
        )
    )

    uri: ModelUri
    """The base model: a folder as s3://BUCKET/PREFIX, a repository of the hub of the profile as hf://ORG/NAME, or a
    folder in a PersistentVolumeClaim of the job's namespace as pvc://CLAIM/PATH. It contains config.json, the tokenizer
    and the weights as .safetensors, as save_pretrained of Transformers writes them. Code and pickles in it are never
    read."""
    revision: (
        Annotated[
            str,
            Field(min_length=1, max_length=255),
            SchemaKeys(
                rules(
                    (
                        "self.matches('^[A-Za-z0-9][A-Za-z0-9._/+-]*$') && !self.contains('..')",
                        "must be a branch, a tag or a commit of the repository, for example main or v1.0",
                    ),
                    (
                        "!self.matches('^(refs|pr)/')",
                        "must not be a pull request or another reference below refs/, which anybody may open: use a "
                        "branch, a tag or a commit that the owner of the repository has made",
                    ),
                )
            ),
        ]
        | None
    ) = None
    """Branch, tag or commit of a model on a hub. Preflight resolves it to a commit and writes the commit to
    status.resolved.revisions. Every attempt uses this commit, also if the branch moves. A pull request, refs/pr/N, is
    refused. Default: main."""
    token_secret_ref: TokenSecretRef | None = None
    """Token for a gated or private model on a hub: a key of a Secret in the job's namespace. The token is also used for
    the job's hf:// data sets. Default: spec.hub.tokenSecretName of the profile."""

    @property
    def contradiction(self) -> str | None:
        """Return why the fields do not belong together; None if they do. The rules above are the same for the API
        server."""
        if self.uri.startswith("hf://"):
            return _NO_MODEL if re.match(_OTHER_KINDS, self.uri) else None
        unused = "revision" if self.revision else "tokenSecretRef" if self.token_secret_ref else None
        return unused and f"{unused} needs a model on a hub, hf://ORG/NAME: remove {unused}, or change uri"


class Output(ApiModel):
    """Where the results are written."""

    uri: PrefixUri
    """Folder for the results, as s3://BUCKET/PREFIX, or as pvc://CLAIM/PATH in a PersistentVolumeClaim of the job's
    namespace. The folder belongs to this job alone. If it already contains results of another job, or if an unfinished
    job writes to it, this job fails before it requests a GPU."""
    merge: bool = False
    """Also publish the base model with the adapter merged into its weights. The merged model is written to the folder
    merged, as bfloat16 .safetensors with the tokenizer. Any server can load it, and it is as large as the base
    model. The merged model is evaluated again on the held-out rows; status.evaluation.merged reports what merging
    changed."""


MOST_GPUS = 16
"""Most GPUs of one node. The largest nodes of clouds have 16."""
MOST_NODES = 16
"""Most nodes of a job. The status of the job names the pod on each of them."""


class Compute(ApiModel):
    """Resources that the training pod requests: GPUs of a type of the profile, CPU and memory."""

    gpu_type: GpuTypeName | None = None
    """Name of a GPU type in spec.gpuTypes of the FineTuneProfile. Default: unset, and the job uses the cheapest type
    that fits by the prediction of the preflight; status.gpuType says which one and why."""
    gpus_per_node: Annotated[int, Field(ge=1, le=MOST_GPUS)] = 1
    """Number of GPUs of each training pod. Each GPU has a process of its own that trains on a share of the rows of each
    step. It holds the whole model, or a shard of its weights if the model does not fit one GPU (LoRA and Full). The
    optimizer steps do not depend on the number. A job with several GPUs does not use GPU types that are MIG instances
    or shared GPUs."""
    nodes: Annotated[int, Field(ge=1, le=MOST_NODES)] = 1
    """Number of nodes that train together. Each has one training pod with gpusPerNode GPUs, and all pods start, fail
    and stop together. The optimizer steps do not depend on the number. The pods find each other by the cluster's
    DNS."""
    cpu: Cpu = "1"
    """CPU request of a training pod for each of its GPUs, as a Kubernetes quantity."""
    memory: Memory = "8Gi"
    """Memory request and limit of a training pod for each of its GPUs. If it is more than the memory limit of
    the preflight pod (4Gi unless the FineTuneProfile sets another one), it is that limit too."""
    service_account_name: (
        Annotated[DnsLabel, dns_label("the name of a ServiceAccount in the job's namespace")] | None
    ) = None
    """ServiceAccount of the pods, for example one with a cloud role for the buckets. The ServiceAccount needs the
    ClusterRole finetune-trainer in the job's namespace. Default: finetune-trainer, which the operator creates and
    binds."""
    labels: PodLabels | None = None
    """Labels of the pods of this job. Their keys must be in spec.pods.allowed.labels of the FineTuneProfile."""
    annotations: PodAnnotations | None = None
    """Annotations of the pods of this job. Their keys must be in spec.pods.allowed.annotations of the
    FineTuneProfile."""
    priority_class_name: PriorityClassName | None = None
    """PriorityClass of the pods of this job, in spec.pods.allowed.priorityClassNames of the FineTuneProfile. Default:
    unset, and the pods have that of the FineTuneProfile."""

    @property
    def pod_memory(self) -> str:
        """Return the memory request and limit of each training pod."""
        return times(self.gpus_per_node, self.memory)

    @property
    def gpus(self) -> int:
        """Return the number of GPUs of all training pods."""
        return self.nodes * self.gpus_per_node


class ResumeFrom(ApiModel):
    """An earlier job of the same namespace, from whose newest checkpoint this job starts."""

    name: Annotated[DnsLabel, dns_label("the name of a FineTuneJob in the same namespace")]
    """Name of the earlier job. It must have failed, and its checkpoints must still exist. A completed job has none: use
    its adapter in method.lora.from."""


def _in_output(uri: str) -> str:
    """Return a CEL expression: whether `uri` is inside output.uri. `finetune_api.conflicts` checks wildcards and other
    spellings of the same place."""
    return f"({uri} + '/').startsWith(self.output.uri.endsWith('/') ? self.output.uri : self.output.uri + '/')"


_SAME_START = (
    "has(self.resumeFrom) == has(oldSelf.resumeFrom) && "
    "(!has(self.resumeFrom) || self.resumeFrom == oldSelf.resumeFrom)"
)
_UNCHANGED = " && ".join(
    [
        *(
            f"self.{field} == oldSelf.{field}"
            for field in ("profileName", "model", "method", "dataset", "training", "evaluation", "output", "compute")
        ),
        _SAME_START,
    ]
)
"""CEL rule: no other field than suspend and runPolicy has changed. All fields that it compares directly have defaults
or are required, so they are always present. A test compares the list with the fields of the model."""


class FineTuneJobSpec(ApiModel):
    """The base model, the rows, the training settings and the output of one job. Only suspend and runPolicy can be
    changed: create a new FineTuneJob for a changed experiment."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                _UNCHANGED,
                "only spec.suspend and spec.runPolicy can be changed: create a FineTuneJob with another name, or "
                "delete this one first",
            ),
            (
                "!has(self.resumeFrom) || self.method.type != 'None'",
                "spec.method.type None trains nothing, so it cannot start from a checkpoint: remove spec.resumeFrom",
            ),
            (
                f"!{_in_output('self.model.uri')}",
                "spec.output.uri must not be spec.model.uri or a folder above it: choose another prefix",
            ),
            (
                f"!has(self.method.lora.from) || !{_in_output('self.method.lora.from')}",
                "spec.output.uri must not be spec.method.lora.from or a folder above it: choose another prefix",
            ),
            (
                "!has(self.dataset.deduplicate.embeddingModel) || "
                f"!{_in_output('self.dataset.deduplicate.embeddingModel.uri')}",
                "spec.output.uri must not be spec.dataset.deduplicate.embeddingModel.uri or a folder above it: choose "
                "another prefix",
            ),
            (
                f"self.dataset.train.all(s, !{_in_output('s.uri')})",
                "spec.output.uri must not be a folder that contains files of spec.dataset.train: the next run would "
                "read the results as rows; choose another prefix",
            ),
            (
                f"(!has(self.dataset.test) || self.dataset.test.all(s, !{_in_output('s.uri')})) && "
                f"(!has(self.dataset.validation) || self.dataset.validation.all(s, !{_in_output('s.uri')})) && "
                f"(!has(self.evaluation.regression) || self.evaluation.regression.all(s, !{_in_output('s.uri')}))",
                "spec.output.uri must not be a folder that contains files of spec.dataset.test, "
                "spec.dataset.validation or spec.evaluation.regression: the next run would read the results as rows; "
                "choose another prefix",
            ),
            (
                "!self.output.merge || self.method.type != 'Full'",
                "spec.method.type Full publishes a whole model and no adapter to merge: remove spec.output.merge",
            ),
        )
    )

    profile_name: Annotated[
        DnsLabel, dns_label("the name of a FineTuneProfile; list them with kubectl get finetuneprofiles")
    ] = "default"
    """Name of the FineTuneProfile to use. The platform team defines GPUs, storage and the trainer image in it."""
    model: Model
    """The base model."""
    method: Method = Method()
    """How the weights are tuned."""
    dataset: Dataset
    """The rows for training, validation and test."""
    training: Training = Training()
    """Training settings, for example epochs and learning rate."""
    evaluation: Evaluation = Evaluation()
    """How the tuned model is compared with the base model."""
    output: Output
    """Where the results are written."""
    compute: Compute = Compute()
    """Resources that the training pod requests."""
    suspend: bool | None = None
    """Whether the job is suspended. A running attempt stores a checkpoint and stops; false or unset resumes the job
    from this checkpoint. Can be changed at any time. Default: unset, and the job runs."""
    resume_from: ResumeFrom | None = None
    """An earlier job that failed. This job starts from its newest checkpoint instead of the first step, or from its
    tuned weights if its training had ended. All fields that change the optimizer steps must be the same in both jobs:
    preflight refuses the job otherwise, and names the field. Default: unset, and the job starts with the first step."""
    run_policy: RunPolicy | None = None
    """How often and for how long the job may be tried, and what it may cost. Can be changed while the job runs."""

    @property
    def policy(self) -> RunPolicy:
        """Return the run policy, also if none is set."""
        return self.run_policy or RunPolicy()
