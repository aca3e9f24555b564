"""Loads the base model and measures it before the training, unless an earlier attempt did."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.method import MethodType
from finetune_trainer.checkpoints.kept import KeptResults
from finetune_trainer.evaluation.kept_measurements import KeptMeasurements, keep_baselines, kept_baselines
from finetune_trainer.evaluation.quantized import shortage
from finetune_trainer.evaluation.recipe import Assessor, Baselines
from finetune_trainer.evaluation.scoring import Evaluator
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.model.isolation import describe, sharing
from finetune_trainer.model.parameters.loading import greedy_generation, load_model
from finetune_trainer.model.parameters.sharding import load_sharded
from finetune_trainer.pod.failure import failure_of
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.ranks.group import agreed, gather


@dataclass(frozen=True, eq=False)
class BaseMeasuring:
    """The measuring of the base model of a job."""

    bundle: Bundle
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    folder: Path
    """The files of the base model."""
    kept: KeptResults
    say: Callable[[str], None]
    """Reports what is done."""
    tokens: int
    """Tokens of a forward pass."""

    def measure(self) -> tuple[PreTrainedModel, Assessor, Baselines]:
        """Returns the same as `measure_base`."""
        resolved, needed = self.prepared.resolved, self.prepared.resolved.base_memory
        if needed is None:
            return self._measure(resolved.method)
        short = self._shortage(needed)
        if short is None:
            try:
                baselines = self._measure(MethodType.LORA)[2]
            except RuntimeError as error:
                if failure_of(error).reason is not FailureReason.GPU_OUT_OF_MEMORY:
                    raise
                # Running out of memory while measuring the base must not fail the job.
                short = "the base model in bfloat16 ran out of GPU memory"
            self.accelerator.free_memory()
        if short:
            model, assessor, baselines = self._measure(resolved.method, f" in 4 bits, because {short}")
            return model, assessor, replace(baselines, shortage=short)
        print("Loading the base model in 4 bits.", flush=True)
        model, assessor = self.load(resolved.method)
        return model, assessor, assessor.beside_quantized(baselines, model)

    def _shortage(self, needed: str) -> str | None:
        """Returns why the base model in bf16 does not fit on one of the ranks, or None if it fits on all."""
        memory = self.bundle.spec.compute.memory
        return next(filter(None, gather(shortage(needed, self.accelerator.device, memory))), None)

    def load(self, method: MethodType) -> tuple[PreTrainedModel, Assessor]:
        """Loads the base model for `method`. Returns it with the object that measures it."""
        device = self.accelerator.device
        model, generation = agreed(lambda: load_base(self.bundle, self.prepared, method, device, self.folder))
        evaluator = Evaluator(self.tokenizer, self.tokens, generation, self.accelerator)
        return model, Assessor(self.bundle, self.prepared, evaluator)

    def _measure(self, method: MethodType, why: str = "") -> tuple[PreTrainedModel, Assessor, Baselines]:
        model, assessor = self.load(method)

        def say(what: str) -> None:
            self.say(f"Answering {len(assessor.held_out):,} held-out rows with {what}.")

        remember = KeptMeasurements(self.kept, f"base.{method.lower()}")
        return model, assessor, assessor.baselines(model, say, remember, f"the base model{why}")


def measure_base(base: BaseMeasuring) -> tuple[PreTrainedModel, Assessor, Baselines]:
    """Measures the base model as it would be served, or takes over what an earlier attempt measured. Returns the base
    model as the method trains it.

    Under QLoRA these are two models: it measures the base model in bf16, if that fits into memory, and returns the base
    model in 4 bits. Only one of them is in memory at a time."""
    if (earlier := kept_baselines(base.kept)) is not None:
        return *base.load(base.prepared.resolved.method), earlier
    model, assessor, baselines = base.measure()
    keep_baselines(base.kept, baselines)
    return model, assessor, baselines


def load_base(
    bundle: Bundle, prepared: Prepared, method: MethodType, device: torch.device, folder: Path
) -> tuple[PreTrainedModel, GenerationConfig]:
    """Loads the base model in `folder` for `method`, with its generation settings. Prints why rows of this model cannot
    share a forward pass, if so. Raises TrainerFailure as `load_model`, `load_sharded` and `sharing` do."""
    phase("loading the base model")
    if prepared.sharded_on(bundle):
        model = load_sharded(folder, method, device)
    else:
        model = load_model(folder, method, device, bundle.spec.method.quantization)
    if slower := describe(sharing(model)):
        print(slower, flush=True)
    return model, greedy_generation(model, prepared.stop_token_ids, prepared.resolved.max_new_tokens)
