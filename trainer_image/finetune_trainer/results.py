"""What a run came to: everything the report, the model card and the manifest are made from."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from peft import LoraConfig

from finetune_api.bundle import Bundle
from finetune_api.status import Training
from finetune_trainer.evaluate import Measured
from finetune_trainer.prepared import Example, Prepared
from finetune_trainer.serving import Serving
from finetune_trainer.training_loop import Step
from finetune_trainer.verdict import Comparison

LIBRARIES = ("finetune-operator", "accelerate", "bitsandbytes", "peft", "safetensors", "torch", "transformers")


def versions() -> dict[str, str]:
    """The software that decides what a run gives."""
    return {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}


@dataclass(frozen=True, eq=False)
class Results:
    """A finished run."""

    bundle: Bundle
    prepared: Prepared
    training: Training
    """The same as the status has it in the end."""
    steps: Sequence[Step]
    held_out: Sequence[Example]
    """The rows both models were measured on."""
    base: Measured
    tuned: Measured
    comparison: Comparison
    serving: Serving
    """How the tuned model is to be asked."""
    adapter: LoraConfig
    base_license: dict[str, str]
    """The base model's licence in the words of hubs, where it is known."""

    @property
    def training_seconds(self) -> float:
        """Time of all steps together."""
        return sum(step.seconds for step in self.steps)
