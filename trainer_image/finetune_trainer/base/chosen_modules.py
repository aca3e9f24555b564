"""Checks the layers that `method.lora` names, and that QLoRA can quantize the layers of the model.

PEFT reports a wrong name only if no name matches, and only after a GPU was allocated."""

from collections.abc import Sequence, Set

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Lora, Method, MethodType
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.base.expert_settings import require_expert_settings
from finetune_trainer.base.experts import adaptable
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sizing.saved_modules import is_in_saved, is_saved, with_outer

NO_ADAPTER = ("out_proj", "conv1d", "dt_proj")
"""Layers of MAMBAS on which an adapter has no effect, because their kernels read the weights without calling the layer.
PEFT refuses the first two."""
MAMBAS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Values of model_type for which PEFT refuses them. In Bamba and Zamba2 an adapter on these layers has an effect."""
NO_FOUR_BIT = ("falcon",)
"""Values of model_type whose linear layers have their own class, which bitsandbytes does not quantize."""


def require_modules(lora: Lora, model: BaseModel) -> None:
    """Raises TrainerFailure SpecInvalid for a name in targetModules or modulesToSave with which no layer's name ends,
    and for a name in targetModules on which an adapter has no effect. PEFT reports this only if no name matches, and
    only after a GPU was allocated."""
    matrices = adaptable(model.sizes)
    targets = [] if lora.target_modules == ["all-linear"] else lora.target_modules
    _require(targets, matrices, "targetModules")
    if (refused := sorted({*targets} & {*NO_ADAPTER})) and model.model_type in MAMBAS:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.method.lora.targetModules: an adapter on {refused[0]} has no effect, because {model.model_type} "
            "reads the weights without calling the layer.",
            f"Remove {refused[0]}, or set all-linear, which excludes it.",
        )
    if lora.modules_to_save:
        _require_saved(lora.modules_to_save, model)


def _require_saved(names: Sequence[str], model: BaseModel) -> None:
    """Raises TrainerFailure SpecInvalid for a name in modulesToSave that selects no module, and for a tied embedding
    that PEFT would train in only one of its two places."""
    layers = {name.rpartition(".")[0] for name in model.sizes}
    found = model.vocabulary
    heads = {"lm_head"} if found and found.tied else set[str]()  # not in the headers
    modules = heads | {outer for layer in layers for outer in with_outer(layer)}
    unknown = [name for name in names if not any(is_saved(module, [name]) for module in modules)]
    _refuse_unknown(unknown, layers | heads, "modulesToSave")
    if found and found.tied and not found.ties_in_peft:
        both = [name for name in names if any(is_saved(module, [name]) for module in heads | {found.head_module})]
        if both:
            raise TrainerFailure(
                FailureReason.SPEC_INVALID,
                f"spec.method.lora.modulesToSave: {both[0]} selects {found.head_module}, whose weights are also the "
                "output head. PEFT would train them in only one of the two places.",
                f"Remove {both[0]}, or set spec.method.type to Full.",
            )


def require_quantizable(model: BaseModel, lora: Lora) -> None:
    """Raises TrainerFailure SpecInvalid if QLoRA would not quantize the layers of the model, or if it would quantize a
    layer that modulesToSave trains whole."""
    require_expert_settings(Method(type=MethodType.QLORA), model.sizes)
    saved = [m.name for m in model.shape.matrices if is_in_saved(m.name, lora.modules_to_save or [])]
    if saved:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.method.lora.modulesToSave selects {saved[0].rpartition('.')[2]}, which QLoRA quantizes to 4 bits. "
            "Such weights cannot be trained.",
            "Name only modules without linear layers of the blocks, or set spec.method.type to LoRA.",
        )
    if model.model_type in NO_FOUR_BIT:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.method.type: QLoRA cannot quantize the layers of {model.model_type} to 4 bits.",
            "Set spec.method.type to LoRA and use a FineTuneProfile with a larger GPU, or choose another model.",
        )


def _require(names: Sequence[str], layers: Set[str], field: str) -> None:
    unknown = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    _refuse_unknown(unknown, layers, field)


def _refuse_unknown(unknown: Sequence[str], layers: Set[str], field: str) -> None:
    if unknown:
        known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers})[:12])
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.method.lora.{field}: the model has no layer {', '.join(unknown)}.",
            f"Use names of its layers: {known}.",
        )
