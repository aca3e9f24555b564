"""Reads the shape of a causal language model from config.json and from the headers of its weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

Sizes = Mapping[str, Sequence[int]]
"""Shape of every weight by name, from the headers of the .safetensors files."""


HEADS = ("lm_head.weight", "embed_out.weight")
"""Names of the matrix of the output head."""
SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings that scale or cap the result of the output head before it becomes the logits."""
CLAMPED_GATE = 7
"""Tensors that GPT-OSS's gate keeps: gate, clamped gate, its sigmoid, their product, up, up plus one, the result."""


@dataclass(frozen=True)
class Matrix:
    """A linear layer, with the number of times that it occurs in the blocks of the model."""

    name: str
    """Name without block numbers, for example model.layers.self_attn.q_proj."""
    rows: int
    columns: int
    count: int
    used: int | None = None
    """Occurrences that a token passes. None: all of them. A token passes only some of the experts."""

    @property
    def parameters(self) -> int:
        """Weights of all occurrences."""
        return self.rows * self.columns * self.count

    @property
    def passed(self) -> int:
        """Occurrences that a token passes."""
        return self.count if self.used is None else self.used


@dataclass(frozen=True)
class ModelShape:
    """The numbers that decide the memory and the computation of a causal language model."""

    parameters: int
    """All parameters, with all experts. A tied output head counts once."""
    matrices: tuple[Matrix, ...]
    """The linear layers and the experts of the blocks. QLoRA stores linear layers in 4 bits. Adapters are added to all
    of them."""
    layers: int
    hidden: int
    """Width of the residual stream."""
    intermediate: int
    """Width inside the MLP. With experts: of all experts together that a token passes."""
    query: int
    """Number of attention heads x size of a head."""
    key_value: int
    """Number of key and value heads x size of a head."""
    vocabulary: int
    gated: bool = True
    """Whether the MLP multiplies two branches (SwiGLU, GeGLU)."""
    gate_tensors: int = 4
    """Tensors of the width of the MLP that a gated MLP keeps for the backward pass."""
    activation: str = "silu"
    norms: int = 2
    """Number of norms of the residual stream in each layer."""
    rms: bool = True
    """Whether the norms are RMSNorm. Otherwise they are LayerNorm."""
    normed_heads: bool = False
    """Whether queries and keys are also normalised."""
    tied: bool = False
    """Whether the output head shares its weights with the embedding."""
    head_bias: bool = False
    """Whether the output head adds a bias (Phi)."""
    bare_logits: bool = True
    """Whether the result of the output head is the logits. Otherwise it is scaled or capped."""
    other_parameters: int = 0
    """Frozen parameters outside of the language model, such as those for images."""
    routed: int = 0
    """Experts of a layer that a token passes. 0 in a model without experts."""
    softcapped_heads: int = 0
    """Attention heads whose scores are capped. No fused kernel supports this, so they keep a score for every pair of
    tokens."""
    layered: bool = True
    """Whether the layers of the model are known. Otherwise its weights cannot be sharded."""
    sink_heads: int = 0
    """Attention heads with an attention sink (GPT-OSS). Transformers has no fused kernel for them, so they keep a
    probability for every pair of tokens."""

    @property
    def stored_parameters(self) -> int:
        """All weights in the model's files."""
        return self.parameters + self.other_parameters

    @property
    def linear_parameters(self) -> int:
        """Weights of the matrices in the blocks, with all experts."""
        return sum(matrix.parameters for matrix in self.matrices)

    @property
    def passed_parameters(self) -> int:
        """Weights of the matrices in the blocks that a token passes."""
        return sum(matrix.rows * matrix.columns * matrix.passed for matrix in self.matrices)

    def targeted(self, target_modules: Sequence[str]) -> list[Matrix]:
        """Returns the matrices that get an adapter: those whose name ends with a target, or all for `all-linear`."""
        if list(target_modules) == ["all-linear"]:
            return list(self.matrices)
        return [m for m in self.matrices if any(f".{m.name}".endswith(f".{name}") for name in target_modules)]


def model_shape(config: Mapping[str, Any], sizes: Sizes, tied: bool | None = None) -> ModelShape:
    """Returns the shape of the model with this config.json and these weights. Raises ValueError when config.json lacks
    a setting. `tied`: whether the output head is the embedding. The default is that of config.json, or of the family.

    The shapes of the weights are preferred to config.json, whose settings have different names in each model family."""
    config = config.get("text_config") or config
    hidden = _setting(config, "hidden_size", "n_embd", "d_model")
    layers = _setting(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    # The config.json of a model without attention (Mamba, RWKV) has no number of heads.
    heads = _setting(config, "num_attention_heads", "n_head", "num_heads", "n_heads", default=1)
    head = config.get("head_dim") or hidden // heads
    groups = 1 if config.get("multi_query") else config.get("num_key_value_heads") or heads
    in_blocks = {name: size for name, size in sizes.items() if any(part.isdigit() for part in name.split("."))}
    norms = [name for name, size in in_blocks.items() if name.endswith(".weight") and list(size) == [hidden]]
    tied = _is_tied(config) if tied is None else tied
    counted = {name: size for name, size in sizes.items() if not tied or name not in HEADS}
    experts = [size for name, size in in_blocks.items() if is_expert(name, size)]
    routed = _setting(config, "num_experts_per_tok", "experts_per_token") if experts else 0
    matrices = _matrices(in_blocks, routed)
    return ModelShape(
        parameters=sum(map(prod, counted.values())),
        matrices=matrices,
        layers=layers,
        hidden=hidden,
        intermediate=routed * _inner(experts, hidden)
        or _setting(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=4 * hidden),
        query=heads * head,
        key_value=groups * head,
        vocabulary=_setting(config, "vocab_size"),
        gated=any("gate" in matrix.name for matrix in matrices),
        gate_tensors=CLAMPED_GATE if config.get("swiglu_limit") else 4,
        activation=_activation(config),
        norms=round(len(norms) / layers),
        rms=not any(f"{name.removesuffix('weight')}bias" in sizes for name in norms),
        normed_heads=any(name.endswith(("q_norm.weight", "query_layernorm.weight")) for name in in_blocks),
        tied=tied,
        head_bias=any(name.replace("weight", "bias") in sizes for name in HEADS),
        routed=routed,
        bare_logits=not any(config.get(name) not in (None, 0, 1) for name in SCALED),
        softcapped_heads=heads if config.get("attn_logit_softcapping") else 0,
        sink_heads=heads if any(name.endswith(".sinks") for name in in_blocks) else 0,
    )


def is_expert(name: str, size: Sequence[int]) -> bool:
    """Returns whether a weight is a stack of experts, shape [experts, rows, columns]."""
    return ".experts." in name and len(size) == 3


def _is_tied(config: Mapping[str, Any]) -> bool:
    """tie_word_embeddings of config.json; if missing, the default of its model_type in Transformers."""
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    from transformers import CONFIG_MAPPING

    family = config.get("model_type")
    return bool(getattr(CONFIG_MAPPING[family](), "tie_word_embeddings", True)) if family in CONFIG_MAPPING else True


def _setting(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json must set {names[0]} to a positive integer")
    return value


def _activation(config: Mapping[str, Any]) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function")
    return str(next((config[name] for name in names if config.get(name)), "silu"))


def _matrices(in_blocks: Sizes, routed: int) -> tuple[Matrix, ...]:
    """Returns the matrices of the blocks. `routed`: experts of a layer that a token passes. The routers of experts are
    left out, because they stay frozen and are small."""
    routing = {name.rpartition(".experts.")[0] for name, size in in_blocks.items() if is_expert(name, size)}
    count, passed = Counter[tuple[str, int, int]](), Counter[tuple[str, int, int]]()
    for name, size in in_blocks.items():
        kind = ".".join(part for part in name.removesuffix(".weight").split(".") if not part.isdigit())
        if is_expert(name, size):
            count[kind, size[1], size[2]] += size[0]
            passed[kind, size[1], size[2]] += routed
        elif len(size) == 2 and name.endswith(".weight") and name.rsplit(".", 2)[0] not in routing:
            count[kind, size[0], size[1]] += 1
    return tuple(Matrix(*kind, count=number, used=passed.get(kind)) for kind, number in count.items())


def _inner(experts: Sequence[Sequence[int]], hidden: int) -> int:
    """Returns the width inside one expert, or 0 without experts. The smallest stack is the one that leads back to the
    residual stream of width `hidden`."""
    return min((rows * columns // hidden for _, rows, columns in experts), default=0)
