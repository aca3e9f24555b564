"""Whether the memory and the disk of the training pods are enough, before a pod holds a GPU."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from finetune_api.bundle import Bundle
from finetune_api.quantity import bytes_of, gibibytes
from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Publish
from finetune_api.status.preflight import Advice, Estimate, Resolved
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.hardware.prediction import of_allowed, setups_of
from finetune_trainer.sizing.host_memory import CUDA, host_memory, memory_for_checkpoints
from finetune_trainer.sizing.memory import Setup
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.scratch import checkpoint_bytes, most_space

RESERVE = 1.05
"""Factor by which a proposed value is above the prediction."""


def require_memory(bundle: Bundle, found: Sequence[Estimate], resolved: Resolved, model: BaseModel) -> list[Estimate]:
    """Returns the estimates `found`, of which those do not fit whose pods have too little memory on their node.

    Raises TrainerFailure DoesNotFit if the job then fits no GPU type that it may use. A job that may train on the CPU
    is not checked: its model is in this memory, and the prediction is for a GPU."""
    if bundle.allow_cpu or not found:
        return list(found)
    spec = bundle.spec
    checked = [_checked(each, _memory(spec, resolved, model, each), spec) for each in found]
    fitting = _fitting(bundle, found)
    if not fitting or _fitting(bundle, checked):
        return checked
    needed = min(_memory(spec, resolved, model, each) for each in fitting)
    has = gibibytes(bytes_of(spec.compute.pod_memory))
    raise TrainerFailure(
        FailureReason.DOES_NOT_FIT,
        f"Each training pod needs about {gibibytes(needed)} of memory on its node, but has {has}: spec.compute.memory "
        f"is {spec.compute.memory} for each of its GPUs. {_why(fitting, model)}",
        f"Set spec.compute.memory to {_enough_memory(needed, spec)} or more.",
    )


def require_scratch(
    bundle: Bundle, found: Sequence[Estimate], resolved: Resolved, model: BaseModel, prepared: int
) -> None:
    """Raises TrainerFailure DoesNotFit if an attempt can need more disk space than the scratch volume of its pod has.
    `prepared`: bytes of the prepared rows."""
    if bundle.scratch_size is None:
        return
    spec = bundle.spec
    base = sum(model.files.values())
    keeps_best = resolved.publish is Publish.BEST
    space = most_space(model.shape, planned_setup(bundle, found, resolved, model.shape), keeps_best, spec.output.merge)
    needed = prepared + base + space.size
    if needed <= bytes_of(bundle.scratch_size):
        return
    raise TrainerFailure(
        FailureReason.DOES_NOT_FIT,
        f"A training pod needs up to {gibibytes(needed)} of disk space: {gibibytes(prepared + base)} for the base "
        f"model and the rows, and {gibibytes(space.size)} for {space.what}. Its scratch volume has "
        f"{bundle.scratch_size}, by spec.pods.scratchSizeLimit of FineTuneProfile {spec.profile_name}.",
        f"Set spec.pods.scratchSizeLimit of the profile to {_enough(needed)} or more, or use a smaller model.",
    )


def without_checkpoints(
    bundle: Bundle, found: Sequence[Estimate], resolved: Resolved, model: BaseModel
) -> list[Advice]:
    """Returns the advice that the pods have no memory to write checkpoints; none if they have, or need none. Only the
    state of sharded weights has to be copied first."""
    setup, spec = planned_setup(bundle, found, resolved, model.shape), bundle.spec
    if bundle.allow_cpu or setup.method != "Full" or setup.shards == 1 or not resolved.total_steps:
        return []
    state = checkpoint_bytes(model.shape, setup)
    needed = memory_for_checkpoints(spec.compute.gpus_per_node, state)
    if needed <= bytes_of(spec.compute.pod_memory):
        return []
    message = (
        "The run will probably write no checkpoints, so an attempt that is interrupted begins again. A checkpoint of "
        f"sharded weights needs a copy of {gibibytes(state)} in the memory of the first pod. Set spec.compute.memory "
        f"to {_enough_memory(needed, spec)} or more."
    )
    return [Advice(reason="NoMemoryForCheckpoints", message=message)]


def planned_setup(bundle: Bundle, found: Sequence[Estimate], resolved: Resolved, shape: ModelShape) -> Setup:
    """Returns the settings that decide the sizes. The weights are sharded if they are on a GPU type that the job may
    use."""
    setup = setups_of(bundle.spec, resolved, shape)[0]
    sharded = any(each.sharded for each in _fitting(bundle, found))
    return replace(setup, shards=bundle.spec.compute.gpus) if sharded else setup


def _fitting(bundle: Bundle, found: Sequence[Estimate]) -> list[Estimate]:
    """Returns the estimates of the GPU types that the job may use and that it fits, as far as is known."""
    return [each for each in of_allowed(found, bundle.spec, bundle.gpu_types) if each.fits is not False]


def _memory(spec: FineTuneJobSpec, resolved: Resolved, model: BaseModel, estimate: Estimate) -> float:
    return host_memory(
        model.shape,
        spec.compute.gpus_per_node,
        model.converted,
        full=resolved.method is MethodType.FULL,
        sharded=bool(estimate.sharded),
        merge=spec.output.merge,
    )


def _checked(estimate: Estimate, needed: float, spec: FineTuneJobSpec) -> Estimate:
    """Returns the estimate, which does not fit if the pods have less than the `needed` memory on their nodes."""
    if estimate.fits is False or needed <= bytes_of(spec.compute.pod_memory):
        return estimate
    enough = _enough_memory(needed, spec)
    instead = f"The pods have too little memory on their nodes. With spec.compute.memory {enough}, the job would fit."
    return estimate.model_copy(update={"fits": False, "seconds": None, "cost": None, "alternative": instead})


def _why(fitting: Sequence[Estimate], model: BaseModel) -> str:
    """Returns what needs the memory, as a sentence."""
    if any(each.sharded for each in fitting) and model.converted:
        return (
            "The weights are sharded over the GPUs, and the process of each GPU first converts them to bfloat16 in "
            "this memory. A model that is stored in bfloat16 needs less."
        )
    return "The processes of the GPUs need it, and the weights while they are written."


def _enough_memory(needed: float, spec: FineTuneJobSpec) -> str:
    """Returns a value of spec.compute.memory that is surely enough for a pod."""
    return _enough(needed / spec.compute.gpus_per_node + CUDA)


def _enough(needed: float) -> str:
    return f"{ceil(RESERVE * needed / 2**30)}Gi"
