"""The shape of a causal language model: what of config.json and of its weights' headers decides memory and time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

Sizes = Mapping[str, Sequence[int]]
"""Shape of every weight, by its name, as in the headers of the .safetensors files."""


HEADS = ("lm_head.weight", "embed_out.weight")
"""Names of the output head's matrix."""
SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings by which the logits are not what the output head returns."""


@dataclass(frozen=True)
class Matrix:
    """A linear layer, as often as the model's blocks have it."""

    name: str
    """Without the blocks' numbers: model.layers.self_attn.q_proj."""
    rows: int
    columns: int
    count: int

    @property
    def parameters(self) -> int:
        """Weights of all of them."""
        return self.rows * self.columns * self.count


@dataclass(frozen=True)
class ModelShape:
    """What decides the size and the work of a dense causal language model."""

    parameters: int
    """All of them, a tied output head counted once."""
    matrices: tuple[Matrix, ...]
    """The linear layers of the blocks: what QLoRA holds in 4 bits and adapters are put on."""
    layers: int
    hidden: int
    """Width of the residual stream."""
    intermediate: int
    """Width inside the MLP."""
    query: int
    """Attention heads times their size."""
    key_value: int
    """Key and value heads times their size."""
    vocabulary: int
    gated: bool = True
    """Whether the MLP multiplies two branches (SwiGLU, GeGLU)."""
    activation: str = "silu"
    norms: int = 2
    """Normalisations of the residual stream in each layer."""
    rms: bool = True
    """Whether they are RMSNorm; otherwise LayerNorm."""
    normed_heads: bool = False
    """Whether queries and keys are normalised too."""
    tied: bool = False
    """Whether the output head is the embedding."""
    head_bias: bool = False
    """Whether the output head adds a bias (Phi)."""
    bare_logits: bool = True
    """Whether the output head's product is the logits; otherwise they are scaled or capped."""
    softcapped_heads: int = 0
    """Attention heads whose scores are capped, which no fused kernel does: they keep a score for every two tokens."""

    @property
    def linear_parameters(self) -> int:
        """Weights of the blocks' matrices."""
        return sum(matrix.parameters for matrix in self.matrices)

    def targeted(self, target_modules: Sequence[str]) -> list[Matrix]:
        """The matrices that get an adapter, by the end of their name, or all of them by `all-linear`."""
        if list(target_modules) == ["all-linear"]:
            return list(self.matrices)
        return [m for m in self.matrices if any(f".{m.name}".endswith(f".{name}") for name in target_modules)]


def model_shape(config: Mapping[str, Any], sizes: Sizes, tied: bool | None = None) -> ModelShape:
    """The shape of the model with this config.json and these weights. Raises ValueError naming what config.json lacks.
    `tied`: whether the output head is the embedding. Default: as config.json, or else the family's default, says.

    What the weights tell is taken from them, since config.json names few things alike in all families."""
    config = config.get("text_config") or config
    hidden = _setting(config, "hidden_size", "n_embd", "d_model")
    layers = _setting(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    # A model without attention (Mamba, RWKV) names no heads.
    heads = _setting(config, "num_attention_heads", "n_head", "num_heads", "n_heads", default=1)
    head = config.get("head_dim") or hidden // heads
    groups = 1 if config.get("multi_query") else config.get("num_key_value_heads") or heads
    in_blocks = {name: size for name, size in sizes.items() if any(part.isdigit() for part in name.split("."))}
    norms = [name for name, size in in_blocks.items() if name.endswith(".weight") and list(size) == [hidden]]
    tied = _is_tied(config) if tied is None else tied
    counted = {name: size for name, size in sizes.items() if not tied or name not in HEADS}
    matrices = _matrices(in_blocks)
    return ModelShape(
        parameters=sum(map(prod, counted.values())),
        matrices=matrices,
        layers=layers,
        hidden=hidden,
        intermediate=_setting(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=4 * hidden),
        query=heads * head,
        key_value=groups * head,
        vocabulary=_setting(config, "vocab_size"),
        gated=any("gate" in matrix.name for matrix in matrices),
        activation=_activation(config),
        norms=round(len(norms) / layers),
        rms=not any(f"{name.removesuffix('weight')}bias" in sizes for name in norms),
        normed_heads=any(name.endswith(("q_norm.weight", "query_layernorm.weight")) for name in in_blocks),
        tied=tied,
        head_bias=any(name.replace("weight", "bias") in sizes for name in HEADS),
        bare_logits=not any(config.get(name) not in (None, 0, 1) for name in SCALED),
        softcapped_heads=heads if config.get("attn_logit_softcapping") else 0,
    )


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
        raise ValueError(f"config.json has no {names[0]} above 0")
    return value


def _activation(config: Mapping[str, Any]) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function")
    return str(next((config[name] for name in names if config.get(name)), "silu"))


def _matrices(in_blocks: Sizes) -> tuple[Matrix, ...]:
    kinds = Counter(
        (".".join(part for part in name.removesuffix(".weight").split(".") if not part.isdigit()), size[0], size[1])
        for name, size in in_blocks.items()
        if len(size) == 2 and name.endswith(".weight")
    )
    return tuple(Matrix(name, rows, columns, count) for (name, rows, columns), count in kinds.items())
