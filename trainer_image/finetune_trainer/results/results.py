"""What a run came to: everything the report, the model card and the manifest are made from."""

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
    """The software that decides what a run gives."""
    return {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}


@dataclass(frozen=True, eq=False, kw_only=True)
class Results:
    """A finished run."""

    bundle: Bundle
    prepared: Prepared
    training: Training
    """The same as the status has it in the end."""
    steps: Sequence[Step]
    held_out: Sequence[Example]
    """The rows all models were measured on."""
    assessment: Assessment
    serving: Serving
    """How the tuned model is to be asked."""
    adapter: LoraConfig | None
    """Its settings; None where the whole model was tuned."""
    base_license: dict[str, str]
    """The base model's licence in the words of hubs, where it is known."""
    validation: Sequence[ValidationLoss] = ()
    """The validation curve; none where there are no validation rows."""

    @property
    def base(self) -> Measured:
        """The base model on the held-out rows."""
        return self.assessment.baselines.base

    @property
    def tuned(self) -> Measured:
        """The tuned model on the same rows."""
        return self.assessment.tuned

    @property
    def comparison(self) -> Comparison:
        """The models side by side."""
        return self.assessment.comparison

    @property
    def evaluation(self) -> Evaluation:
        """The same as the status has it, with the verdict."""
        return self.assessment.evaluation

    @property
    def quantization(self) -> Quantization | None:
        """How the base model was quantized under the adapter, in the training and when the tuned model was measured;
        None where it was not."""
        qlora = self.prepared.resolved.method is MethodType.QLORA
        return (self.bundle.spec.method.quantization or Quantization()) if qlora else None

    @property
    def answered(self) -> list[tuple[Example, Answer, Answer]]:
        """Each held-out row with the base model's answer and the tuned one's; none where no answers were asked for."""
        return list(zip(self.held_out, self.base.answers, self.tuned.answers, strict=False))

    @property
    def training_seconds(self) -> float:
        """Time of all steps together."""
        return sum(step.seconds for step in self.steps)
