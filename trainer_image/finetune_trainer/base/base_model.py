"""Inspects the base model without downloading its weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.reasons import FailureReason
from finetune_trainer.base.composite import is_composite, language_model
from finetune_trainer.base.experts import experts_misfit, stacked
from finetune_trainer.base.model_files import (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    TOKENIZER_CONFIG,
    Files,
    Pins,
    fetch_settings,
    pin,
    read_object,
    shards_of,
    weight_map,
    without_card,
)
from finetune_trainer.base.supported import require_supported
from finetune_trainer.base.weights import Tensor, Tensors, read_header, read_rows, spread
from finetune_trainer.base.weights_fit import Vocabulary, is_tied, misfit, vocabulary_of
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.sizing.model_shape import HEADS, ModelShape, Sizes, model_shape
from finetune_trainer.storage.job_storage import JobStorage, join

CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "seq_length",
    "max_sequence_length",
    "max_seq_len",
    "context_length",
)
COMPARED = 16
"""Number of rows of the embedding and the output head that are compared if both must be equal."""


@dataclass(frozen=True)
class BaseModel:
    """The properties of the model that preflight needs."""

    tokenizer: Any
    shape: ModelShape
    """The sizes that decide memory and time."""
    sizes: Sizes
    """Shape of every weight by its name. The names show which layers an adapter can be put on."""
    context: int | None
    """Longest sequence in tokens according to the settings; None if they do not say it."""
    end_tokens: tuple[int, ...]
    """The end-of-sequence tokens of the settings."""
    model_type: str
    """The name of the architecture in Transformers."""
    fingerprint: bytes
    """The content of tokenizer.json, or of tokenizer.model if there is no tokenizer.json."""
    headers: Sizes
    """Shape of every tensor in the files by its name there, also of those that are not tuned."""
    files: Files
    """All files of the folder that are used."""
    pins: Pins
    """The identities of these files, before any of them was read."""
    converted: int
    """Number of weights that are not in memory as they are in the files: those that are not in bf16, and experts."""
    vocabulary: Vocabulary | None
    """The embedding and the output head; None if their names are not known."""

    @property
    def rows(self) -> int:
        """Number of rows of the embedding. The model knows the token ids below this number."""
        return self.vocabulary.rows if self.vocabulary else self.shape.vocabulary


def inspect_model(storage: JobStorage, uri: str, scratch: Path) -> BaseModel:
    """Downloads the settings and the tokenizer to `scratch`, reads the headers of the weights, and returns the model.

    Raises TrainerFailure ModelNotFound if a file is missing, and ModelUnsupported if the model cannot be tuned."""
    phase("inspecting the base model")
    pins = pin(storage, uri)
    files = fetch_settings(storage, uri, scratch)
    config = read_object(scratch / CONFIG, uri)
    require_supported(config, uri)
    whole = read_tensors(storage, uri, files, scratch)
    tensors = language_model(config["model_type"], whole) if is_composite(config) else whole
    sizes = stacked({name: tensor.shape for name, tensor in tensors.items()})
    if not is_composite(config):
        _shape(config, sizes, uri)  # names what config.json lacks more plainly than Transformers does
    fitting = _require_fit(scratch, tensors, uri)
    tied = is_tied(fitting)
    if is_composite(config):
        # The part about the language model leaves out what has the default value.
        config = fitting.get_text_config().to_dict() | {name: config[name] for name in config if name != "text_config"}
    others = _numbers(whole) - _numbers(tensors)
    shape = replace(_shape(config, sizes, uri, tied), other_parameters=others)
    vocabulary = vocabulary_of(tensors, tied)
    if vocabulary and vocabulary.tied:
        _require_one_head(storage, tensors, vocabulary, uri)
    tokenizer = _tokenizer(scratch, uri)
    own = [path for path in (scratch / "tokenizer.json", scratch / "tokenizer.model") if path.exists()]
    return BaseModel(
        tokenizer=tokenizer,
        shape=shape,
        sizes=sizes,
        context=next((config[key] for key in CONTEXT if isinstance(config.get(key), int)), None),
        end_tokens=known(_end_tokens(scratch, config, uri), vocabulary.rows if vocabulary else shape.vocabulary),
        model_type=config["model_type"],
        fingerprint=b"".join(path.read_bytes() for path in own[:1]),
        headers={name: tensor.shape for name, tensor in whole.items()},
        files=files,
        converted=_numbers({name: tensor for name, tensor in whole.items() if tensor.dtype != "BF16"})
        + _numbers({name: tensor for name, tensor in tensors.items() if _is_stacked(name, tensor, sizes)}),
        pins={path: pins.get(path, "") for path in without_card(files)},
        vocabulary=vocabulary,
    )


def read_tensors(storage: JobStorage, uri: str, files: Files, scratch: Path) -> Tensors:
    """Returns the tensors of all files with weights. If there are several files, their index is in `scratch`.

    Raises TrainerFailure ModelUnsupported if the index and the shards do not belong together."""
    tensors: dict[str, Tensor] = {}
    for shard in shards_of(files):
        found = read_header(storage, join(uri, shard), files[shard])
        if twice := next((name for name in found if name in tensors), None):
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"The tensor {twice} is in two of the files that {join(uri, INDEX)} names, {shard} and "
                f"{tensors[twice].uri.rpartition('/')[2]}.",
                "Use a copy of the model without files of another model.",
            )
        tensors |= found
    if INDEX in files and (absent := sorted(set(weight_map(scratch / INDEX, uri)) - set(tensors))):
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{join(uri, INDEX)} names the tensor {absent[0]}, but none of its files has that tensor.",
            "Use a copy of the model in which the index and the shards belong together.",
        )
    return tensors


def known(ids: Iterable[int], rows: int) -> tuple[int, ...]:
    """Returns the token ids for which an embedding with `rows` rows has a row."""
    return tuple(id for id in ids if 0 <= id < rows)


def _is_stacked(name: str, tensor: Tensor, sizes: Sizes) -> bool:
    """Returns whether the tensor is one expert in bf16 that is stacked in memory with others of its layer."""
    return ".experts." in name and name not in sizes and tensor.dtype == "BF16"


def _numbers(tensors: Tensors) -> int:
    return sum(prod(tensor.shape) for tensor in tensors.values())


def _shape(config: dict[str, Any], sizes: Sizes, uri: str, tied: bool | None = None) -> ModelShape:
    try:
        return model_shape(config, sizes, tied)
    except ValueError as error:
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"The model in {uri}: {error}.") from error


def _require_fit(folder: Path, tensors: Tensors, uri: str) -> Any:
    """Returns config.json as a PreTrainedConfig of Transformers. Raises TrainerFailure ModelUnsupported if the weights
    do not match it."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        sizes = stacked({name: tensor.shape for name, tensor in tensors.items()})
        problem = misfit(config, tensors) or experts_misfit(config.get_text_config().to_dict(), sizes)
    except Exception as error:  # a damaged file can raise any error
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED, f"{join(uri, CONFIG)} cannot be read: {_detail(error, folder, uri)}"
        ) from error
    if problem:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The weights in {uri} do not match its config.json: {problem}.",
            "Use the config.json and the weights of the same unquantized model.",
        )
    return config


def _require_one_head(storage: JobStorage, tensors: Tensors, found: Vocabulary, uri: str) -> None:
    """Raises TrainerFailure ModelUnsupported if the output head and the embedding differ although config.json says that
    they are tied. Transformers would then use both, and a server only one of them."""
    for name in HEADS:
        head = tensors.get(name, found.embedding)
        rows = spread(found.rows, COMPARED)
        if head.shape != found.embedding.shape or (
            head != found.embedding
            and not np.array_equal(read_rows(storage, head, rows), read_rows(storage, found.embedding, rows))
        ):
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"{join(uri, CONFIG)} has tie_word_embeddings true, but {name} differs from {found.embedding_name}.",
                "If the model has a separate output head, use a copy with tie_word_embeddings false. If not, use a "
                f"copy without {name}.",
            )


def _tokenizer(folder: Path, uri: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file can raise any error
        if _needs_code(folder, uri):
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"The tokenizer in {uri} needs custom code (auto_map in {TOKENIZER_CONFIG}), which this operator never "
                "runs.",
                "Save the tokenizer as tokenizer.json, or choose another model.",
            ) from error
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The tokenizer in {uri} cannot be loaded: {_detail(error, folder, uri)}",
        ) from error
    if not tokenizer.is_fast:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The tokenizer in {uri} has no tokenizer.json.",
            "Add that file, or use a copy of the model that has it.",
        )
    return tokenizer


def _needs_code(folder: Path, uri: str) -> bool:
    path = folder / TOKENIZER_CONFIG
    return path.exists() and bool(read_object(path, uri).get("auto_map"))


def _detail(error: Exception, folder: Path, uri: str) -> str:
    """Returns the first line of the error of Transformers, with the model's URI instead of the local folder."""
    return next(iter(str(error).replace(str(folder), uri).splitlines()), type(error).__name__)[:300]


def _end_tokens(folder: Path, config: Mapping[str, Any], uri: str) -> tuple[int, ...]:
    generation = folder / GENERATION_CONFIG
    settings = [config, read_object(generation, uri) if generation.exists() else {}]
    found = [setting.get("eos_token_id") for setting in settings]
    flat = [token for value in found for token in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(token for token in flat if isinstance(token, int)))
