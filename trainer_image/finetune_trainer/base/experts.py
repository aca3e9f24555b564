"""Mixture-of-experts layers in config.json, in the headers of the weights, and in the names of PEFT."""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

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
    mixed = [name for name in DENSE_TOO if config.get(name) not in (None, [], 1)]
    if mixed:
        return f"has mixture-of-experts layers only in some of its layers ({mixed[0]}), for which PEFT has no adapters"
    return None


def experts_misfit(config: Mapping[str, Any], sizes: Sizes) -> str | None:
    """Returns the first layer whose number of experts in `sizes` is not that of `config`, as a sentence without its
    end; None if there is none."""
    wanted = next((config[key] for key in EXPERTS if config.get(key)), None)
    wrong = ((name, size[0]) for name, size in sizes.items() if is_expert(name, size) and size[0] != wanted)
    return next((f"config.json has {wanted} experts, but {name} has {count}" for name, count in wrong), None)


def stacked(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns `sizes` with the experts of each layer stacked, by the names and shapes that Transformers has in memory:
    LAYER.experts.gate_up_proj, shape [experts, 2 x inner, hidden], and LAYER.experts.down_proj, shape [experts, hidden,
    inner]. The sizes of a model without experts, or with stacked experts, are unchanged."""
    found: dict[str, tuple[int, ...]] = {}
    singles: dict[str, list[Sequence[int]]] = {}
    for name, size in sizes.items():
        renamed = name.replace(".block_sparse_moe.", ".mlp.")  # Mixtral's name in checkpoints
        if (single := _ONE.fullmatch(renamed)) and len(size) == 2:
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
