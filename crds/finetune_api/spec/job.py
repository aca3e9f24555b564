"""FineTuneJob: what a tenant writes."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, DnsLabel, SchemaKeys, dns_label, rules
from finetune_api.spec.dataset import Dataset
from finetune_api.spec.evaluation import Evaluation
from finetune_api.spec.method import Method
from finetune_api.spec.training import Training
from finetune_api.uris import PrefixUri

Cpu = Annotated[
    str,
    Field(max_length=32),
    SchemaKeys(
        rules(
            (
                "isQuantity(self) && quantity(self).compareTo(quantity('1m')) >= 0 && "
                "quantity(self).compareTo(quantity('1024')) <= 0",
                "must be a Kubernetes quantity above 0 and of at most 1024, for example 2 or 500m",
            )
        )
    ),
]
Memory = Annotated[
    str,
    Field(max_length=32),
    SchemaKeys(
        rules(
            (
                "isQuantity(self) && quantity(self).compareTo(quantity('128Mi')) >= 0",
                "must be a Kubernetes quantity of at least 128Mi, for example 16Gi; a number alone means bytes",
            )
        )
    ),
]


class Model(ApiModel):
    """The base model."""

    uri: PrefixUri
    """Where the base model lies, as s3://BUCKET/PREFIX: the folder with config.json, the tokenizer and the weights
    as .safetensors, as Transformers' save_pretrained writes it. Remote code is never run."""


class Output(ApiModel):
    """Where the results go."""

    uri: PrefixUri
    """Where the results are written, as s3://BUCKET/PREFIX. The place belongs to this job: one that already holds
    another job's results, or that a job which is not finished writes to, is refused before a GPU is asked for."""
    merge: bool = False
    """Also publish the adapter merged into the base model's weights, as bfloat16 .safetensors with the tokenizer, in
    the folder merged: one model that any server loads, as large as the base model. The merged model is measured again
    on the held-out rows, and what merging changed is said in status.evaluation.merged."""


class Compute(ApiModel):
    """What the training pod asks for, beside one GPU of the profile."""

    cpu: Cpu = "1"
    """CPU request of the training pod."""
    memory: Memory = "8Gi"
    """Memory request and limit of the training pod; where it is more than 4Gi, the preflight's limit too."""
    service_account_name: (
        Annotated[DnsLabel, dns_label("the name of a ServiceAccount in the job's namespace")] | None
    ) = None
    """ServiceAccount the pods run as, for example one with a cloud role for the buckets. It needs the ClusterRole
    finetune-trainer in this namespace. Default: finetune-trainer, which the operator makes and binds."""


def _in_output(uri: str) -> str:
    """CEL: whether `uri` lies in output.uri. Wildcards and other spellings of a place are left to
    `finetune_api.conflicts`."""
    return f"({uri} + '/').startsWith(self.output.uri.endsWith('/') ? self.output.uri : self.output.uri + '/')"


class FineTuneJobSpec(ApiModel):
    """What to tune, on what, into what. Immutable: a changed experiment is a new FineTuneJob."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self == oldSelf",
                "spec cannot be changed: create a FineTuneJob with another name, or delete this one first",
            ),
            (
                f"!{_in_output('self.model.uri')}",
                "output.uri must not be the model's own folder or one above it: choose another prefix",
            ),
            (
                f"!has(self.method.lora.from) || !{_in_output('self.method.lora.from')}",
                "output.uri must not be the folder of method.lora.from or one above it: choose another prefix",
            ),
            (
                "!has(self.dataset.deduplicate.embeddingModel) || "
                f"!{_in_output('self.dataset.deduplicate.embeddingModel.uri')}",
                "output.uri must not be the embedding model's own folder or one above it: choose another prefix",
            ),
            (
                f"self.dataset.train.all(s, !{_in_output('s.uri')})",
                "output.uri must not be a folder that dataset.train reads from or one above it: the next run would "
                "read the results as rows; choose another prefix",
            ),
            (
                f"(!has(self.dataset.test) || self.dataset.test.all(s, !{_in_output('s.uri')})) && "
                f"(!has(self.dataset.validation) || self.dataset.validation.all(s, !{_in_output('s.uri')})) && "
                f"(!has(self.evaluation.regression) || self.evaluation.regression.all(s, !{_in_output('s.uri')}))",
                "output.uri must not be a folder that dataset.test, dataset.validation or evaluation.regression reads "
                "from or one above it: the next run would read the results as rows; choose another prefix",
            ),
            (
                "!self.output.merge || self.method.type != 'Full'",
                "method.type Full publishes a whole model, so there is nothing to merge: remove output.merge",
            ),
        )
    )

    profile_name: Annotated[DnsLabel, dns_label("the name of a FineTuneProfile, see kubectl get finetuneprofiles")] = (
        "default"
    )
    """The FineTuneProfile to run under: the platform team's GPUs, storage and trainer image."""
    model: Model
    """The base model."""
    method: Method = Method()
    """How the weights are tuned."""
    dataset: Dataset
    """The rows to learn from and those to judge by."""
    training: Training = Training()
    """The recipe."""
    evaluation: Evaluation = Evaluation()
    """How base and tuned model are compared."""
    output: Output
    """Where the results go."""
    compute: Compute = Compute()
    """What the training pod asks for."""
