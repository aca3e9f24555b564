"""Chooses the layers that get an adapter, and the weights that method Full trains."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.base.composite import is_composite, is_tuned
from finetune_trainer.base.experts import DOWN, GATE_UP
from finetune_trainer.model.layers.experts import is_experts
from finetune_trainer.sizing.saved_modules import PEFT_PREFIX


def adapter_targets(model: PreTrainedModel, names: Sequence[str]) -> tuple[list[str] | str, list[str] | None]:
    """Returns the modules and the parameters for PEFT's LoraConfig that `names`, targetModules of the spec, select. For
    all-linear these are every linear layer but the output head, and all experts. The router gets no adapter, and nor
    does a layer for images."""
    composite = reads_images(model)
    experts = {name for name, module in model.named_modules() if is_experts(module)}
    if not experts and not composite:
        return ("all-linear" if list(names) == ["all-linear"] else list(names)), None
    if composite:
        inside = [name for name, _ in tuned_modules(model)]
        return (_linear(model) if list(names) == ["all-linear"] else _chosen(inside, names)), None
    stacks = [f"{name}.{stack}" for name in sorted(experts) for stack in (GATE_UP, DOWN)]
    if list(names) == ["all-linear"]:
        # PEFT would take all-linear for the names that this model's layers had in Transformers 4, with the router.
        return _ends(_linear(model)), _ends(stacks, parts=3)
    modules = [name for name in names if _chosen(_linear(model), [name])]
    return modules, _ends(_chosen(stacks, names), parts=3) or None


def train_whole(model: PreTrainedModel) -> None:
    """Makes all weights trainable, of a model with images only those of the language model."""
    model.requires_grad_(True)
    freeze_images(model)


def freeze_images(model: nn.Module) -> None:
    """Freezes the weights outside of the language model of a model with images, also if it has an adapter. PEFT would
    train their biases if it trains biases at all."""
    if reads_images(model):
        for name, parameter in model.named_parameters():
            if not is_tuned(name.removeprefix(PEFT_PREFIX)):
                parameter.requires_grad_(False)


def tuned_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the modules with their names, of a model with images only those of the language model. `model`: without
    an adapter, or PEFT's base model with its adapter."""
    modules = list(model.named_modules())
    return [(name, module) for name, module in modules if is_tuned(name)] if reads_images(model) else modules


def reads_images(model: nn.Module) -> bool:
    """Returns whether only the language model of `model` is tuned, because it also reads images."""
    config = getattr(model, "config", None)
    return config is not None and is_composite(config.to_dict())


def _linear(model: PreTrainedModel) -> list[str]:
    """Returns the linear layers except the output head, of a model with images only those of the language model."""
    head = model.get_output_embeddings()
    return [name for name, module in tuned_modules(model) if isinstance(module, nn.Linear) and module is not head]


def _chosen(layers: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the layers whose name ends with one of `names`."""
    return [layer for layer in layers if any(f".{layer}".endswith(f".{name}") for name in names)]


def _ends(names: Sequence[str], parts: int = 1) -> list[str]:
    """Returns the last `parts` of each name, sorted and without repetition."""
    return sorted({".".join(name.split(".")[-parts:]) for name in names})
