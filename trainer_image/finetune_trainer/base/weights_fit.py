"""Checks that a model's weights match its config.json, using only the headers of the weights.

Transformers detects a mismatch only after a GPU was allocated. It ignores layers that config.json does not have."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from finetune_trainer.base.weights import Tensor, Tensors, is_quantized
from finetune_trainer.sizing.model_shape import HEADS

EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "embed_in",
    "embeddings",
    "tok_embeddings",
    "tokens_embed",
    "word_embedding",
)
"""Names of the embedding, the matrix with a row for each token, in the causal language models of Transformers."""
NARROWED = ("word_embed_proj_dim", "embedding_size", "input_embedding_size", "embedding_dim", "d_embed")
"""Settings with which the embedding has another number of columns than the layers."""
FURTHER_ROWS = ("mllama", "mllama_text_model", "moshi")
"""Values of model_type whose embedding has more rows than vocab_size."""
LAYERS = ("num_hidden_layers", "decoder_layers", "num_layers_per_stack")
"""Settings for the number of blocks in a list of blocks."""


@dataclass(frozen=True)
class Vocabulary:
    """The embedding and the output head, the matrices with a row for each token."""

    embedding_name: str
    embedding: Tensor
    head_name: str
    """The embedding's name if both are tied."""
    head: Tensor

    @property
    def rows(self) -> int:
        """Number of tokens of the model. The token ids are below this number."""
        return self.embedding.shape[0]

    @property
    def tied(self) -> bool:
        """Whether the embedding and the output head are the same matrix."""
        return self.head_name == self.embedding_name

    @property
    def head_module(self) -> str:
        """Name of the module of the output head, or of the embedding if both are tied."""
        return self.head_name.removesuffix(".weight")

    @property
    def ties_in_peft(self) -> bool:
        """Whether PEFT can train the tied matrix in both places. It recognizes only this name of an embedding."""
        return self.embedding_name.removesuffix(".weight").rpartition(".")[2] == "embed_tokens"

    @property
    def modules(self) -> list[str]:
        """Names of both modules for method.lora.modulesToSave."""
        names = (self.embedding_name, self.head_name)
        return list(dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in names))


def vocabulary_of(tensors: Tensors, tied: bool) -> Vocabulary | None:
    """Returns the embedding and the output head, or None if no matrix has a known name. `tied`: both are the same
    matrix."""
    outside = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) == 2 and not _block(name)}
    named = [name for end in EMBEDDINGS for name in sorted(outside) if f".{name}".endswith(f".{end}.weight")]
    if not named:
        return None
    embedding = outside[named[0]]
    others = [name for name in sorted(outside) if name not in named]
    heads = [name for name in others if name in HEADS or outside[name].shape[0] == embedding.shape[0]]
    heads.sort(key=lambda name: name not in HEADS)
    head = named[0] if tied or not heads else heads[0]
    return Vocabulary(named[0], embedding, head, outside[head])


def misfit(config: Any, tensors: Tensors) -> str | None:
    """Returns the first difference between `tensors` and `config`, a PreTrainedConfig, or None."""
    if quantized := next((name for name, tensor in tensors.items() if is_quantized(tensor) and _is_weight(name)), None):
        return f"{quantized} is stored as {tensors[quantized].dtype}, so the weights are already quantized"
    text = config.get_text_config()
    tied = is_tied(config)
    vocabulary = vocabulary_of(tensors, tied)
    return _misfit_blocks(text, tensors) or (_misfit_vocabulary(text, vocabulary, tied) if vocabulary else None)


def is_tied(config: Any) -> bool:
    """Returns whether the output head is the embedding according to `config`, a PreTrainedConfig."""
    text = config.get_text_config()  # that of Qwen2.5-VL does not have the setting
    return bool(config.tie_word_embeddings or getattr(text, "tie_word_embeddings", False))


def _misfit_vocabulary(text: Any, found: Vocabulary, tied: bool) -> str | None:
    name, (rows, columns) = found.embedding_name, found.embedding.shape
    if rows != text.vocab_size and text.model_type not in FURTHER_ROWS:
        return f"config.json has vocab_size {text.vocab_size:,}, but {name} has {rows:,} rows"
    narrowed = any(getattr(text, setting, None) for setting in NARROWED)
    if not narrowed and columns != getattr(text, "hidden_size", columns):
        return f"config.json has hidden_size {text.hidden_size:,}, but {name} has {columns:,} columns"
    if not tied and found.head_name == name:
        return (
            "config.json has tie_word_embeddings false, but there is no output head (lm_head.weight). Set "
            "tie_word_embeddings to true if the embedding is also the output head"
        )
    return None


def _misfit_blocks(text: Any, tensors: Tensors) -> str | None:
    """Returns the difference between the blocks and the settings, or None if a list of blocks has the number of the
    settings."""
    lists = _lists(tensors)
    counts = [getattr(text, setting) for setting in LAYERS if getattr(text, setting, None)]
    # Some models have further layers that predict tokens after the next one. Transformers ignores these layers.
    further = getattr(text, "num_nextn_predict_layers", None) or 0
    if not lists or not counts or any(set(range(n)) <= of <= set(range(n + further)) for n in counts for of in lists):
        return None
    numbers, wanted = lists[0], counts[0]
    if absent := sorted(set(range(wanted)) - numbers):
        some = f"layer {absent[0]}" if len(absent) == 1 else f"layers {absent[0]} to {absent[-1]}"
        return f"config.json has {wanted:,} layers, counted from 0, but there are no weights of {some}"
    return f"config.json has {wanted:,} layers, but there are weights of {len(numbers):,} layers"


def _lists(tensors: Iterable[str]) -> list[set[int]]:
    """Returns the numbers of the blocks in each list of modules, the list with the most weights first."""
    lists: dict[str, list[int]] = {}
    for name in tensors:
        if block := _block(name):
            lists.setdefault(block[0], []).append(block[1])
    return [set(numbers) for numbers in sorted(lists.values(), key=len, reverse=True)]


def _block(name: str) -> tuple[str, int] | None:
    """Returns the list of modules that contains a weight, and the number of its block; None outside of a list."""
    parts = name.split(".")
    at = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    return None if at is None else (".".join(parts[:at]), int(parts[at]))


def _is_weight(name: str) -> bool:
    """Returns whether a tensor's name is the name of a weight, quantized or not, and not of a mask or a count."""
    return name.endswith((".weight", "qweight", "weight_packed"))
