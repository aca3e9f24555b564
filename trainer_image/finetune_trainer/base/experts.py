"""Mixture-of-experts layers in config.json and in the headers of the weights, and the settings that fit them."""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Lora, LoraBias, Method, MethodType
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sizing.model_shape import Sizes, is_expert

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Names of the setting for the number of experts in the causal language models of Transformers."""
EXPERTS_SWITCHES = ("is_moe", "enable_moe_block")
"""Settings of Doge and Gemma 4 that disable the experts."""
TUNED = ("gpt_oss", "mixtral", "olmoe", "qwen3_moe")
"""Values of model_type with experts that can be tuned. The tests of the model families prove each of them."""
DENSE_TOO = ("mlp_only_layers", "decoder_sparse_step")
"""Settings of Qwen with which some layers have no experts. PEFT applies the names of the other layers' experts to
them."""
GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""The two parameters in which Transformers stacks the weights of all experts of a layer."""
GATES, UPS, DOWNS = ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")
"""Names of the matrices of a single expert in checkpoints."""
_ONE = re.compile(rf"(.+)\.experts\.\d+\.({'|'.join((*GATES, *UPS, *DOWNS))})\.weight")


def has_experts(settings: dict[str, Any]) -> bool:
    """Returns whether `settings` have more than one expert. They are config.json or a part of it, as text_config."""
    if any(settings.get(switch) is False for switch in EXPERTS_SWITCHES):
        return False
    named = [settings.get(key) for key in EXPERTS]
    # Ernie has one count for each modality.
    counts = [count for value in named for count in (value if isinstance(value, list) else [value])]
    parts = [value for value in settings.values() if isinstance(value, dict)]
    return any(isinstance(count, int) and count > 1 for count in counts) or any(map(has_experts, parts))


def experts_problem(config: Mapping[str, Any]) -> str | None:
    """Returns why the experts of the model with this config.json cannot be tuned, as the end of a sentence; None if
    they can."""
    kind = config.get("model_type")
    if kind not in TUNED:
        return (
            f"is of model_type {kind} and has mixture-of-experts layers, which this operator trains only in "
            f"{', '.join(TUNED)}"
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        named = next(name for name in DENSE_TOO if config.get(name) not in (None, [], 1))
        return f"has mixture-of-experts layers only in some of its layers ({named}), for which PEFT has no adapters"
    return None


def stacked(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns `sizes` with the experts of each layer stacked, by the names and shapes that Transformers has in memory:
    LAYER.experts.gate_up_proj, shape [experts, 2 x inner, hidden], and LAYER.experts.down_proj, shape [experts, hidden,
    inner]. The sizes of a model without experts, or with stacked experts, are unchanged."""
    found: dict[str, tuple[int, ...]] = {}
    singles: dict[str, list[Sequence[int]]] = {}
    for name, size in sizes.items():
        renamed = name.replace(".block_sparse_moe.", ".mlp.")  # Mixtral's name in checkpoints
        if single := _ONE.fullmatch(renamed):
            stack = DOWN if single[2] in DOWNS else GATE_UP
            singles.setdefault(f"{single[1]}.experts.{stack}", []).append(size)
        else:
            found[renamed] = tuple(size)
    for name, matrices in singles.items():
        together = 2 if name.endswith(GATE_UP) else 1
        rows, columns = matrices[0]
        found[name] = (len(matrices) // together, together * rows, columns)
    return found


def adaptable(sizes: Sizes) -> set[str]:
    """Returns the names of the layers that can have an adapter: matrices and stacks of experts. Routers cannot, because
    an adapter there would change which experts learn from a token."""
    blocks = {name.rpartition(".experts.")[0] for name, size in sizes.items() if is_expert(name, size)}
    inside = tuple(f"{block}.experts." for block in blocks)
    return {
        name.removesuffix(".weight")
        for name, size in sizes.items()
        if is_expert(name, size)
        or (len(size) == 2 and name.rsplit(".", 2)[0] not in blocks and not name.startswith(inside))
    }


def is_stack(name: str) -> bool:
    """Returns whether a name in PEFT's target_parameters is that of stacked experts."""
    return name.split(".")[-1] in (GATE_UP, DOWN)


def stack_of(layer: str, layers: Set[str], parameters: Sequence[str]) -> str:
    """Returns the stack of experts of which PEFT saved an adapter under the name `layer`; `layer` itself if it is no
    experts. PEFT saves that of gate_up_proj under LAYER.experts.base_layer if down_proj has one too, and otherwise
    under LAYER.experts. `layers`: all names in the adapter; `parameters`: its target_parameters."""
    if not layer.endswith((".experts", ".experts.base_layer")):
        return layer
    block = layer.removesuffix(".base_layer")
    both = f"{block}.base_layer" in layers
    only = DOWN if any(name.endswith(DOWN) for name in parameters) else GATE_UP
    return f"{block}.{(DOWN if layer == block else GATE_UP) if both else only}"


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


def _require_whole_blocks(lora: Lora, experts: set[str]) -> None:
    """Raises TrainerFailure SpecInvalid if modulesToSave names a part of a mixture-of-experts layer, or a module that
    contains one."""
    for name in lora.modules_to_save or []:
        for stack in experts:
            block = stack.rpartition(".experts.")[0]
            parents = block.split(".")
            # The layer itself and all around it, for example model.layers.0.mlp, and the parts of the layer.
            around = {".".join(parents[: end + 1]) for end in range(len(parents))}
            inside = {f"{block}.{part}" for part in ("experts", "gate", "router")}
            if any(f".{module}".endswith(f".{name}") for module in around | inside):
                raise _unfit(
                    "lora.modulesToSave",
                    f"{name} is or contains a part of a mixture-of-experts layer, which cannot be trained whole",
                    f"Remove {name}. targetModules adds adapters to experts, and method.type Full trains them whole.",
                )


def _targets(lora: Lora, experts: set[str]) -> bool:
    names = lora.target_modules
    return names == ["all-linear"] or any(f".{stack}".endswith(f".{name}") for stack in experts for name in names)


def _unfit(field: str, finding: str, remedy: str) -> TrainerFailure:
    return TrainerFailure(FailureReason.SPEC_INVALID, f"spec.method.{field}: {finding}.", remedy)
