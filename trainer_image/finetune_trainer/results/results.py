"""The results of a finished run: the input of the report, the model card and the manifest."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from peft import LoraConfig

from finetune_api.bundle import Bundle
from finetune_api.spec.method import MethodType, Quantization
from finetune_api.status.evaluation import Evaluation
from finetune_api.status.job import Training
from finetune_trainer.evaluation.recipe import Assessment
from finetune_trainer.handover.prepared import Example, Prepared
from finetune_trainer.results.serving import Serving
from finetune_trainer.statistics.comparison import Comparison
from finetune_trainer.statistics.measurements import Answer, Measured
from finetune_trainer.training.loop import Step
from finetune_trainer.training.validation import ValidationLoss

LIBRARIES = ("finetune-operator", "accelerate", "bitsandbytes", "peft", "safetensors", "torch", "transformers")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that influence the results."""
    return {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}


@dataclass(frozen=True, eq=False, kw_only=True)
class Results:
    """The results of a finished run."""

    bundle: Bundle
    prepared: Prepared
    training: Training
    """The same values as in the job's final status."""
    steps: Sequence[Step]
    held_out: Sequence[Example]
    """The held-out rows that all models were measured on."""
    assessment: Assessment
    serving: Serving
    """The prompt format and settings for serving the tuned model."""
    adapter: LoraConfig | None
    """The adapter's settings. None if the whole model was tuned."""
    base_license: dict[str, str]
    """The base model's licence as model card metadata. Empty if it is not known."""
    validation: Sequence[ValidationLoss] = ()
    """The validation losses during training. Empty without validation rows."""

    @property
    def base(self) -> Measured:
        """The base model's measurements on the held-out rows."""
        return self.assessment.baselines.base

    @property
    def tuned(self) -> Measured:
        """The tuned model's measurements on the held-out rows."""
        return self.assessment.tuned

    @property
    def comparison(self) -> Comparison:
        """The comparison of the models."""
        return self.assessment.comparison

    @property
    def evaluation(self) -> Evaluation:
        """The same values as in the job's status, with the verdict."""
        return self.assessment.evaluation

    @property
    def quantization(self) -> Quantization | None:
        """The quantization of the base model during the training and when the tuned model was measured. None if the
        base model was not quantized."""
        qlora = self.prepared.resolved.method is MethodType.QLORA
        return (self.bundle.spec.method.quantization or Quantization()) if qlora else None

    @property
    def answered(self) -> list[tuple[Example, Answer, Answer]]:
        """Each held-out row with the answers of the base and the tuned model. Empty if no metric needs answers."""
        return list(zip(self.held_out, self.base.answers, self.tuned.answers, strict=False))

    @property
    def training_seconds(self) -> float:
        """Total duration of all optimizer steps, in seconds."""
        return sum(step.seconds for step in self.steps)
