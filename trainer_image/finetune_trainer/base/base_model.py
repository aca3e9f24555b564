"""What the base model's folder holds, found out without downloading its weights."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Lora
from finetune_trainer.base.model_files import (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    TOKENIZER_CONFIG,
    Files,
    fetch_settings,
    read_object,
    shards_of,
    weight_map,
)
from finetune_trainer.base.weights import Tensor, Tensors, read_header, read_rows, spread
from finetune_trainer.base.weights_fit import Vocabulary, is_tied, misfit, vocabulary_of
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.storage import Storage, join
from finetune_trainer.sizing.model_shape import HEADS, ModelShape, Sizes, model_shape

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What the causal language models of Transformers call the number of their experts."""
EXPERTS_SWITCHES = ("is_moe", "enable_moe_block")
"""Settings, Doge's and Gemma 4's, that leave the experts out however many are named."""
CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "seq_length",
    "max_sequence_length",
    "max_seq_len",
    "context_length",
)
NO_ADAPTER = ("out_proj", "conv1d", "dt_proj")
"""Layers of MAMBAS that take no adapter: their kernels read the weights past the layer. PEFT refuses the first two."""
MAMBAS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Values of model_type for which PEFT does; in Bamba and Zamba2 an adapter is read."""
NO_FOUR_BIT = ("falcon",)
"""Values of model_type whose linear layers are of a class of their own, which bitsandbytes leaves as they are."""
UNFIT = (
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "musicgen",
    "musicgen_melody",
    "prophetnet",
    "trocr",
    "whisper",
)
"""Values of model_type whose causal model is only the decoder of something else."""
COMPARED = 16
"""Rows of embedding and output head that are compared where the two should be one."""


@dataclass(frozen=True)
class BaseModel:
    """What preflight has to know of the model."""

    tokenizer: Any
    shape: ModelShape
    """What decides memory and time."""
    sizes: Sizes
    """Shape of every weight by its name, which say what layers there are to put an adapter on."""
    context: int | None
    """Longest sequence in tokens its settings name."""
    end_tokens: tuple[int, ...]
    """Tokens its settings end a text on."""
    model_type: str
    """Transformers' name of its architecture."""
    fingerprint: bytes
    """tokenizer.json, or what stands in its place."""
    files: Files
    """All files of the folder that are read."""
    vocabulary: Vocabulary | None
    """The embedding and the output head; None where their names are not known."""

    @property
    def rows(self) -> int:
        """Rows of the embedding: the ids the model knows are those below."""
        return self.vocabulary.rows if self.vocabulary else self.shape.vocabulary


def inspect_model(storage: Storage, uri: str, scratch: Path) -> BaseModel:
    """Reads the settings and the tokenizer into `scratch`, and the weights' headers.

    Raises TrainerFailure ModelNotFound where something is missing, ModelUnsupported where it is nothing we can tune."""
    files = fetch_settings(storage, uri, scratch)
    config = read_object(scratch / CONFIG, uri)
    require_supported(config, uri)
    tensors = read_tensors(storage, uri, files, scratch)
    sizes = {name: tensor.shape for name, tensor in tensors.items()}
    _shape(config, sizes, uri)  # names what config.json lacks more plainly than Transformers does
    tied = is_tied(_require_fit(scratch, tensors, uri))
    shape = _shape(config, sizes, uri, tied)
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
        files=files,
        vocabulary=vocabulary,
    )


def read_tensors(storage: Storage, uri: str, files: Files, scratch: Path) -> Tensors:
    """The tensors of all files with weights, by the index in `scratch` where they are in several.

    Raises TrainerFailure ModelUnsupported where the index and the shards do not belong together."""
    tensors: dict[str, Tensor] = {}
    for shard in shards_of(files):
        found = read_header(storage, join(uri, shard), files[shard])
        if twice := next((name for name in found if name in tensors), None):
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"{twice} is in two of the files that {join(uri, INDEX)} names, {shard} and "
                f"{tensors[twice].uri.rpartition('/')[2]}: upload the model anew, to an empty folder.",
            )
        tensors |= found
    if INDEX in files and (absent := sorted(set(weight_map(scratch / INDEX, uri)) - set(tensors))):
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{join(uri, INDEX)} names {absent[0]}, and none of its files has that tensor: upload the index and the "
            "shards of the same model.",
        )
    return tensors


def known(ids: Iterable[int], rows: int) -> tuple[int, ...]:
    """Those of the ids that an embedding of `rows` rows has a row for."""
    return tuple(id for id in ids if 0 <= id < rows)


def require_supported(config: dict[str, Any], uri: str) -> None:
    """Raises TrainerFailure ModelUnsupported unless `config` (config.json) is a dense causal language model that
    Transformers knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architectures = config.get("architectures") or []
    named = ", ".join(map(str, architectures)) or "no architecture"
    if not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        problem = f"is no causal language model: config.json names {named}"
    elif config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        problem = f"is of model_type {config.get('model_type')}, which this version of Transformers does not know"
    elif has_experts(config):
        problem = "has mixture-of-experts layers, which LoRA on linear layers does not reach"
    elif config["model_type"] in UNFIT:
        problem = f"is of model_type {config['model_type']}, which writes only together with another model"
    elif config["model_type"] == "xlstm":
        problem = "is of model_type xlstm, which computes no logits for chosen positions alone"
    elif config.get("quantization_config"):
        problem = "is quantized already: name the original weights, method.type QLoRA quantizes them"
    else:
        return
    raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"The model in {uri} {problem}.")


def has_experts(settings: dict[str, Any]) -> bool:
    """Whether `settings`, config.json or a part of it such as text_config, name more than one expert."""
    if any(settings.get(switch) is False for switch in EXPERTS_SWITCHES):
        return False
    named = [settings.get(key) for key in EXPERTS]
    # Ernie's has one count for each modality.
    counts = [count for value in named for count in (value if isinstance(value, list) else [value])]
    parts = [value for value in settings.values() if isinstance(value, dict)]
    return any(isinstance(count, int) and count > 1 for count in counts) or any(map(has_experts, parts))


def require_modules(lora: Lora, model: BaseModel) -> None:
    """Raises TrainerFailure SpecInvalid for a name in targetModules or modulesToSave that no layer of the model ends
    with, and for one in targetModules that takes no adapter. PEFT says so only where none fits, and only once a GPU is
    held."""
    matrices = {name.removesuffix(".weight") for name, size in model.sizes.items() if len(size) == 2}
    targets = [] if lora.target_modules == ["all-linear"] else lora.target_modules
    _require(targets, matrices, "targetModules")
    if (refused := sorted({*targets} & {*NO_ADAPTER})) and model.model_type in MAMBAS:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"method.lora.targetModules: a {model.model_type} reads the weights of {refused[0]} past the layer, so "
            "that an adapter on it would do nothing; remove it, or name all-linear, which leaves it out.",
        )
    _require(lora.modules_to_save or [], {name.rpartition(".")[0] for name in model.sizes}, "modulesToSave")


def require_quantizable(model: BaseModel) -> None:
    """Raises TrainerFailure SpecInvalid where QLoRA would quantize nothing."""
    if model.model_type in NO_FOUR_BIT:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"method.type: the layers of a {model.model_type} cannot be held in 4 bits, as QLoRA would: set it to LoRA "
            "on a larger GPU, or take another model.",
        )


def _require(names: Sequence[str], layers: Set[str], field: str) -> None:
    unknown = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    if unknown:
        known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers})[:12])
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"method.lora.{field}: the model has no layer {', '.join(unknown)}; it has {known}.",
        )


def _shape(config: dict[str, Any], sizes: Sizes, uri: str, tied: bool | None = None) -> ModelShape:
    try:
        return model_shape(config, sizes, tied)
    except ValueError as error:
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"The model in {uri}: {error}.") from error


def _require_fit(folder: Path, tensors: Tensors, uri: str) -> Any:
    """config.json as Transformers reads it, a PreTrainedConfig. Raises TrainerFailure
    ModelUnsupported where the weights are not those it describes."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        problem = misfit(config, tensors)
    except Exception as error:  # whatever a broken file makes it raise
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED, f"{join(uri, CONFIG)} cannot be read: {_detail(error, folder, uri)}"
        ) from error
    if problem:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The weights in {uri} are not those that its config.json describes: {problem}. Upload the config.json and "
            "the weights of the same unquantized model.",
        )
    return config


def _require_one_head(storage: Storage, tensors: Tensors, found: Vocabulary, uri: str) -> None:
    """Raises TrainerFailure ModelUnsupported where there is an output head of other weights than the embedding, though
    config.json says that they are one: Transformers would use both, and a server one."""
    for name in HEADS:
        head = tensors.get(name, found.embedding)
        rows = spread(found.rows, COMPARED)
        if head.shape != found.embedding.shape or (
            head != found.embedding
            and not np.array_equal(read_rows(storage, head, rows), read_rows(storage, found.embedding, rows))
        ):
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"{join(uri, CONFIG)} has tie_word_embeddings true, and {name} differs from {found.embedding_name}: "
                "set it to false if the model has an output head of its own, or else upload the weights without one.",
            )


def _tokenizer(folder: Path, uri: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken file makes it raise
        if _needs_code(folder, uri):
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"The tokenizer in {uri} needs code of its own (auto_map in {TOKENIZER_CONFIG}), which is never run: "
                "save it as a tokenizer.json, or choose another model.",
            ) from error
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"The tokenizer in {uri} cannot be loaded: {_detail(error, folder, uri)}",
        ) from error
    if not tokenizer.is_fast:
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"The tokenizer in {uri} has no tokenizer.json.")
    return tokenizer


def _needs_code(folder: Path, uri: str) -> bool:
    path = folder / TOKENIZER_CONFIG
    return path.exists() and bool(read_object(path, uri).get("auto_map"))


def _detail(error: Exception, folder: Path, uri: str) -> str:
    """The first line of what Transformers says, about the model's own place."""
    return next(iter(str(error).replace(str(folder), uri).splitlines()), type(error).__name__)[:300]


def _end_tokens(folder: Path, config: Mapping[str, Any], uri: str) -> tuple[int, ...]:
    generation = folder / GENERATION_CONFIG
    settings = [config, read_object(generation, uri) if generation.exists() else {}]
    found = [setting.get("eos_token_id") for setting in settings]
    flat = [token for value in found for token in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(token for token in flat if isinstance(token, int)))
