"""What a tenant is told of a job that ran out of GPU memory, if its profile has GPU types with more memory."""

from finetune_api.bundle import usable_gpu_types
from finetune_api.quantity import bytes_of
from finetune_api.reasons import with_remedy
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions import gpu_choice
from finetune_operator.observed.world import World


def finding(world: World, said: str) -> str:
    """Return the finding `said`, why the job used its GPU type, and the types with more memory that it may name.

    Without such a type the result is `said`, and the remedy of the reason follows."""
    used = gpu_choice.of_job(world)
    if used is None or used.memory is None or world.spec is None or world.profile is None:
        return said
    larger = _larger(used, world.spec, world.profile)
    if not larger:
        return said
    names = " or ".join(gpu.name for gpu in larger)
    others = " and ".join(f"{gpu.name} ({gpu.memory})" for gpu in larger)
    method = world.status.resolved.method if world.status.resolved else world.spec.method.type
    return with_remedy(
        f"{said} The job used GPU type {used.name} ({used.memory}). Why this type: {used.message} "
        f"FineTuneProfile {world.spec.profile_name} also has {others}.",
        f"Set spec.compute.gpuType to {names}, or lower spec.training.maxSequenceLength"
        f"{'' if method is MethodType.QLORA else ', or set spec.method.type to QLoRA'}.",
    )


def _larger(used: GpuType, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[GpuType]:
    """Return the GPU types with more memory that the job could name, the smallest first."""
    allowed = gpu_choice.payable(spec, usable_gpu_types(spec, profile.gpu_types))
    sizes = {gpu.name: bytes_of(gpu.memory) for gpu in allowed if gpu.memory}
    least = bytes_of(used.memory or "0")
    return sorted((gpu for gpu in allowed if sizes.get(gpu.name, 0) > least), key=lambda gpu: sizes[gpu.name])
