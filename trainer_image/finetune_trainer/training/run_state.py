"""The state of a training besides its weights and its optimizer, and how a checkpoint stores it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from torch import Tensor

from finetune_trainer.training.loop import Step
from finetune_trainer.training.memory_probe import StepLayout
from finetune_trainer.training.spent import Machine, Spent
from finetune_trainer.training.validation import ValidationLoss

STEPS = "steps"
"""Key of the records of the steps in state.safetensors: fp64, shape [steps, fields of Step]."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass
class RunState:
    """How far a training is. Early stopping and the check for divergence follow from the two curves."""

    plan: StepLayout
    halvings: int = 0
    """How often the micro-batches of the plan were halved after an attempt that ran out of GPU memory."""
    steps: list[Step] = field(default_factory=list)
    """All completed steps, of earlier attempts too."""
    curve: list[ValidationLoss] = field(default_factory=list)
    """All measurements of the validation loss."""
    held_before: float = 0.0
    """Seconds that earlier attempts took until their checkpoint."""
    resumed_from: int | None = None
    """Step of the checkpoint with which this attempt began. None: it began at step 0."""
    spent_before: Spent | None = None
    """What earlier attempts used in that time. None: not known, because an earlier version wrote the state."""

    def spent(self, seconds: float, machine: Machine) -> Spent:
        """Returns what all attempts have used when this one has held its machine for `seconds`."""
        before = self.spent_before or Spent().more(self.held_before, machine)
        return before.more(seconds, machine)

    def after(self, seconds: float, machine: Machine) -> "RunState":
        """Returns the state with which a later attempt begins when this one has held its machine for `seconds`."""
        return replace(self, held_before=self.held_before + seconds, spent_before=self.spent(seconds, machine))


class Words(BaseModel):
    """The content of state.json."""

    model_config = ConfigDict(frozen=True)

    step: int
    attempt: int
    held_seconds: float
    spent: Spent | None = None
    """What was used in these seconds. An earlier version did not write it."""
    plan: StepLayout
    halvings: int
    curve: list[ValidationLoss]
    best: str | None
    """Folder of the best weights, next to the checkpoint's own folder."""
    numbers: dict[str, int | float]
    """State of the optimizer that is not a tensor."""
    versions: dict[str, str]

    @property
    def other_versions(self) -> str:
        """Names the libraries that have another version now, for example "torch 2.11 (now 2.13)". Empty if none."""
        now = versions()
        other = {name: was for name, was in self.versions.items() if now.get(name) != was}
        return ", ".join(f"{name} {was} (now {now.get(name)})" for name, was in other.items())


def words_of(run: RunState, attempt: int, best: str | None, numbers: Mapping[str, int | float]) -> Words:
    """Returns the content of state.json after the last step of `run`, the state with which a later attempt begins."""
    return Words(
        step=len(run.steps),
        attempt=attempt,
        held_seconds=run.held_before,
        spent=run.spent_before,
        plan=run.plan,
        halvings=run.halvings,
        curve=run.curve,
        best=best,
        numbers=dict(numbers),
        versions=versions(),
    )


def resumed(words: Words, state: Path) -> RunState:
    """Returns the state of the run with which an attempt goes on. `state`: the file state.safetensors."""
    with safe_open(state, "pt") as file:
        steps = steps_of(file.get_tensor(STEPS))
    curve, held = list(words.curve), words.held_seconds
    return RunState(words.plan, words.halvings, steps, curve, held, words.step, words.spent)


def other_records(words: Words, state: Path) -> str | None:
    """Returns a clause that says why the file has no records of these steps that this version can read, or None."""
    with safe_open(state, "pt") as file:
        shape = file.get_slice(STEPS).get_shape() if STEPS in file.keys() else None  # noqa: SIM118 - not a dict
    fits = shape == [words.step, len(fields(Step))]
    return None if fits else "its records of the steps are from another version of the trainer"


def records(steps: Sequence[Step]) -> Tensor:
    """Returns the records of the steps as a tensor, shape [steps, fields of Step]. fp64 holds them exactly."""
    row = attrgetter(*(field.name for field in fields(Step)))
    return torch.tensor([row(step) for step in steps], dtype=torch.float64).reshape(-1, len(fields(Step)))


def steps_of(records: Tensor) -> list[Step]:
    """Returns the steps of which `records` has made a tensor."""
    kinds = {"int": int, "float": float}
    types = [kinds[str(each.type)] if isinstance(each.type, str) else each.type for each in fields(Step)]
    rows = records.tolist()
    return [Step(*(kind(value) for kind, value in zip(types, row, strict=True))) for row in rows]


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Returns the versions of the libraries on which the exact values of a step depend."""
    return {name: version(name) for name in LIBRARIES}
