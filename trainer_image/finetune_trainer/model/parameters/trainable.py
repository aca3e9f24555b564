"""Selects the trained parameters: a new adapter, a continued adapter, or all weights of the model."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Lora, Method, MethodType
from finetune_trainer.base.chosen_modules import MAMBAS, NO_ADAPTER
from finetune_trainer.base.composite import IN_CHECKPOINTS, adapter_in_memory
from finetune_trainer.base.model_files import ADAPTER_WEIGHTS
from finetune_trainer.base.previous_adapter import PEFT_BIAS
from finetune_trainer.base.weights_fit import is_tied
from finetune_trainer.model.layers.document_dropout import drop_by_document
from finetune_trainer.model.layers.experts import use_expert_adapters
from finetune_trainer.model.parameters.targets import adapter_targets, freeze_images, reads_images, train_whole
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.ranks.shards import is_shard, is_sharded
from finetune_trainer.sizing.saved_modules import PEFT_PREFIX

PEFT_PART = re.compile(r"\.(?:lora_|modules_to_save|base_layer|original_module)|\.(?:weight|bias)$")
"""Where the part of a parameter's name begins that PEFT has added to the name of the layer."""


def make_trainable(
    model: PreTrainedModel, method: Method, type: MethodType, seed: int, adapter: Path | None = None
) -> PreTrainedModel | PeftModel:
    """Makes a frozen model trainable: every weight for Full, or those of its language model if it also reads images;
    otherwise an adapter. `adapter`: folder of the adapter to continue; None for a new one. The trained parameters are
    in fp32.

    Raises TrainerFailure SpecInvalid if the adapter does not fit the model."""
    if type is MethodType.FULL:
        train_whole(model)
        hold_in_fp32(model)
        return model
    return continue_lora(model, method.lora, seed, adapter) if adapter else attach_lora(model, method, seed)


def attach_lora(model: PreTrainedModel, method: Method, seed: int) -> PeftModel:
    """Returns the model with a new adapter in fp32. Raises TrainerFailure SpecInvalid if the model has no module named
    in targetModules or modulesToSave."""
    lora = method.lora
    modules, parameters = adapter_targets(model, lora.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        target_parameters=parameters,
        exclude_modules=list(NO_ADAPTER) if model.config.get_text_config().model_type in MAMBAS else None,
        bias=PEFT_BIAS[lora.bias],
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        # If output head and embedding share their weights, saving one of them must train the shared weights.
        ensure_weight_tying=bool(lora.modules_to_save) and is_tied(model.config),
    )
    return _with_adapter(lambda: get_peft_model(model, config), "targetModules or modulesToSave", seed)


def continue_lora(model: PreTrainedModel, lora: Lora, seed: int, folder: Path) -> PeftModel:
    """Returns the model with the adapter in `folder`, trainable and in fp32. The adapter keeps its own settings; only
    the dropout comes from `lora`. Raises TrainerFailure SpecInvalid if the adapter does not fit the model, or if PEFT
    would ignore a weight of it."""
    config = LoraConfig.from_pretrained(folder)
    config.lora_dropout, config.inference_mode = lora.dropout, False
    weights = load_file(folder / ADAPTER_WEIGHTS)
    renamed = IN_CHECKPOINTS.get(model.config.model_type, {}) if reads_images(model) else {}
    if reads_images(model):
        weights = adapter_in_memory(model.config.model_type, weights)
        # The adapter's own targets can have the names of an earlier version, or select layers for images too.
        config.target_modules = {
            name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in weights if ".lora_" in name
        }
    tuned = _with_adapter(
        lambda: PeftModel.from_pretrained(model, folder, config=config, is_trainable=True, key_mapping=renamed),
        "from",
        seed,
    )
    # PEFT rounds biases and saved modules to the base model's bf16, so they are loaded again in fp32.
    report = set_peft_model_state_dict(tuned, weights)
    _require_all_read(tuned, report.unexpected_keys, report.missing_keys)
    return tuned


def _require_all_read(model: PeftModel, unexpected: Sequence[str], missing: Sequence[str]) -> None:
    """Raises TrainerFailure SpecInvalid if PEFT ignored a weight of the adapter, or has made one up for a layer that
    the adapter does not have. PEFT would only warn."""
    for names, what in (
        (unexpected, "has a weight for {}, which the model does not have"),
        (sorted(trained_weights(model).keys() & {*missing}), "has no weight for {}, which its settings name"),
    ):
        if names:
            layer = PEFT_PART.split(names[0].removeprefix(PEFT_PREFIX))[0]
            raise TrainerFailure(
                FailureReason.SPEC_INVALID,
                f"spec.method.lora.from: the adapter {what.format(layer)}.",
                "Set spec.model.uri to the model that the adapter was trained on. If the adapter has the layer names "
                "of an earlier version of Transformers, load it in the present version and save it again.",
            )


def _with_adapter(build: Callable[[], PeftModel], field: str, seed: int) -> PeftModel:
    torch.manual_seed(seed)
    try:
        tuned = build()
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        finding = f"spec.method.lora.{field} does not fit the model: {str(error).splitlines()[0][:300].rstrip('.')}."
        raise TrainerFailure(FailureReason.SPEC_INVALID, finding) from error
    for module in tuned.modules():
        if hasattr(module, "lora_A"):
            # Autocast casts the small weights down. PEFT would cast the large activations up.
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 - PEFT's, unknown to nn.Module
    drop_by_document(tuned)
    use_expert_adapters(tuned)
    freeze_images(tuned)
    hold_in_fp32(tuned)
    _add_trained_biases_apart(tuned)
    return tuned


def _add_trained_biases_apart(model: nn.Module) -> None:
    """Keeps the trained biases of 4-bit layers in fp32. bitsandbytes would round such a bias for good to the number
    format of the computation, and small updates would be lost."""
    for module in model.modules():
        bias = dict(module.named_parameters(recurse=False)).get("bias")
        if bias is not None and bias.requires_grad and hasattr(module.weight, "quant_state"):
            module.forward = partial(_with_bias_apart, module)


def _with_bias_apart(layer: Any, x: Tensor) -> Tensor:
    bias: Tensor = layer.bias
    try:
        layer.bias = None
        y: Tensor = type(layer).forward(layer, x)
    finally:
        layer.bias = bias
    return y + bias.to(y.dtype)


def hold_in_fp32(model: nn.Module) -> None:
    """Converts the trainable parameters to fp32. Leaves out those that are sharded over the ranks."""
    for parameter in trainable_parameters(model):
        if not is_shard(parameter):
            parameter.data = parameter.data.float()
    for module in model.modules():
        bias = module.bias if isinstance(module, nn.LayerNorm) else None
        if bias is not None and bias.requires_grad and not is_shard(bias):
            module.float()  # on a CPU its weight must have the number format of its bias


def as_published(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Converts the trained parameters to the number format in which they are published and measured: fp32 for an
    adapter, bf16 for a whole model. A sharded model is published by `collected` instead."""
    if not isinstance(model, PeftModel) and not is_sharded(model):
        # Only the parameters: rotary frequencies are buffers and must stay in fp32.
        for parameter in trainable_parameters(model):
            parameter.data = parameter.data.to(torch.bfloat16)
        model.requires_grad_(False)
    return model


def use_gradient_checkpointing(model: PreTrainedModel | PeftModel, wanted: bool) -> None:
    """Switches gradient checkpointing on or off. Raises TrainerFailure SpecInvalid if the model does not support it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if wanted and not base.supports_gradient_checkpointing:
        name = type(base).__name__
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.training.gradientCheckpointing: {name} does not support gradient checkpointing.",
            "Set spec.training.gradientCheckpointing to Disabled.",
        )
    if wanted:
        # Reentrant checkpoints pass no gradient to an adapter whose inputs need no gradient. The random state need not
        # be kept, because dropout does not use it (see document_dropout).
        _switch(base, "enable")({"use_reentrant": False, "preserve_rng_state": False})
    elif uses_gradient_checkpointing(base):
        _switch(base, "disable")()


def uses_gradient_checkpointing(model: nn.Module) -> bool:
    """Returns whether any module of the model uses gradient checkpointing."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _switch(model: PreTrainedModel, how: str) -> Callable[..., None]:
    """Returns the model's method to switch gradient checkpointing. Transformers 5.23 calls it
    activation_checkpointing_*; 5.17 has only the older name."""
    old = f"gradient_checkpointing_{how}"
    switch: Callable[..., None] = getattr(model, f"activation_checkpointing_{how}", None) or getattr(model, old)
    return switch


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that the optimizer changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the trainable parameters by name. A parameter that two modules share occurs once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
