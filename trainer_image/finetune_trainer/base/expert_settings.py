"""Checks that the settings of the method fit a model with mixture-of-experts layers."""

from collections.abc import Set

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Lora, LoraBias, Method, MethodType
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sizing.model_shape import Sizes, is_expert
from finetune_trainer.sizing.saved_modules import is_saved, with_outer


def require_expert_settings(method: Method, sizes: Sizes) -> None:
    """Raises TrainerFailure SpecInvalid if the method cannot be used with the experts of a model with weights of these
    sizes. Any method can be used with a model without experts."""
    experts = {name for name, size in sizes.items() if is_expert(name, size)}
    if not experts or method.type is MethodType.FULL:
        return
    if method.type is MethodType.QLORA:
        raise _unfit(
            "type",
            "QLoRA cannot quantize the experts of this model, which are nearly all of its weights",
            "Set spec.method.type to LoRA, and use a FineTuneProfile with a GPU whose memory holds the model in "
            "bfloat16.",
        )
    lora = method.lora
    if lora.bias is not LoraBias.NONE:
        raise _unfit(
            "lora.bias",
            "the biases of a model with experts cannot be trained, because some of them choose the experts",
            "Set spec.method.lora.bias to None.",
        )
    _require_whole_blocks(lora, experts)
    if _targets(lora, experts):
        without = "or list layers without experts in spec.method.lora.targetModules, for example q_proj and v_proj."
        if lora.dropout:
            raise _unfit(
                "lora.dropout",
                "the adapters of experts have no dropout",
                f"Set spec.method.lora.dropout to 0, {without}",
            )
        if lora.use_dora:
            raise _unfit(
                "lora.useDora",
                "DoRA cannot be used on experts",
                f"Set spec.method.lora.useDora to false, {without}",
            )


def _require_whole_blocks(lora: Lora, experts: Set[str]) -> None:
    """Raises TrainerFailure SpecInvalid if modulesToSave names a part of a mixture-of-experts layer, or a module that
    contains one."""
    for name in lora.modules_to_save or []:
        for stack in experts:
            block = stack.rpartition(".experts.")[0]
            # The layer itself and all around it, for example model.layers.0.mlp, and the parts of the layer.
            around = {*with_outer(block)}
            inside = {f"{block}.{part}" for part in ("experts", "gate", "router")}
            if any(is_saved(module, [name]) for module in around | inside):
                raise _unfit(
                    "lora.modulesToSave",
                    f"{name} is or contains a part of a mixture-of-experts layer, which cannot be trained whole",
                    f"Remove {name}. targetModules adds adapters to experts, and method.type Full trains them whole.",
                )


def _targets(lora: Lora, experts: Set[str]) -> bool:
    names = lora.target_modules
    return names == ["all-linear"] or any(f".{stack}".endswith(f".{name}") for stack in experts for name in names)


def _unfit(field: str, finding: str, remedy: str) -> TrainerFailure:
    return TrainerFailure(FailureReason.SPEC_INVALID, f"spec.method.{field}: {finding}.", remedy)
