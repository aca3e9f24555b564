"""What the base model's folder holds, found out without downloading its weights."""

import json
import struct
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.method import Lora
from finetune_api.model_shape import ModelShape, Sizes, model_shape
from finetune_api.reasons import FailureReason
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.storage import Storage, join

SMALL_FILES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Endings of everything a tokenizer is made of, and of the model's settings."""
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
HEADER_LIMIT = 100_000_000
"""Longest header the safetensors format allows, in bytes."""


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


def inspect_model(storage: Storage, uri: str, scratch: Path) -> BaseModel:
    """Reads the settings and the tokenizer into `scratch`, and the weights' headers.

    Raises TrainerFailure ModelNotFound where something is missing, ModelUnsupported where it is nothing we can tune."""
    files = storage.list_folder(uri)
    if "config.json" not in files:
        hint = ", but an adapter: name its base model" if "adapter_config.json" in files else ""
        raise TrainerFailure(FailureReason.MODEL_NOT_FOUND, f"There is no config.json in {uri}{hint}.")
    storage.download_folder(uri, scratch, lambda path: "/" not in path and path.endswith(SMALL_FILES))
    config = _json(scratch / "config.json", uri)
    require_supported(config, uri)
    sizes: dict[str, tuple[int, ...]] = {}
    for shard in _shards(scratch, files, uri):
        sizes |= tensor_sizes(storage, join(uri, shard), files[shard])
    shape = _shape(config, sizes, uri)
    tokenizer = _tokenizer(scratch, uri)
    own = [path for path in (scratch / "tokenizer.json", scratch / "tokenizer.model") if path.exists()]
    return BaseModel(
        tokenizer=tokenizer,
        shape=shape,
        sizes=sizes,
        context=next((config[key] for key in CONTEXT if isinstance(config.get(key), int)), None),
        end_tokens=_end_tokens(scratch, config, uri),
        model_type=config["model_type"],
        fingerprint=b"".join(path.read_bytes() for path in own[:1]),
    )


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


def _shards(scratch: Path, files: dict[str, int], uri: str) -> list[str]:
    """The weights' files: those of the index where there is one."""
    index = scratch / "model.safetensors.index.json"
    if not index.exists():
        found = [path for path in files if path == "model.safetensors"]
        if not found:
            other = next((path for path in files if path.endswith((".bin", ".pt", ".pth", ".gguf"))), None)
            hint = f", only {other}: convert it with save_pretrained" if other else ""
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED, f"There are no weights as .safetensors in {uri}{hint}."
            )
        return found
    shards = sorted(set(_json(index, uri).get("weight_map", {}).values()))
    if missing := [shard for shard in shards if shard not in files]:
        raise TrainerFailure(
            FailureReason.MODEL_NOT_FOUND,
            f"{join(uri, missing[0])} is missing, one of {len(missing)} files that {index.name} names.",
        )
    return shards


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


def tensor_sizes(storage: Storage, uri: str, size: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a .safetensors file, from its header, as
    https://github.com/huggingface/safetensors#format has it."""
    start = storage.read_bytes(uri, 0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT + 1
    if length > HEADER_LIMIT:
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"{uri} is no safetensors file (a Git LFS pointer?).")
    try:
        header = json.loads(storage.read_bytes(uri, 8, length))
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        end = 8 + length + max(tensor["data_offsets"][1] for tensor in tensors.values())
        sizes = {name: tuple(map(int, tensor["shape"])) for name, tensor in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"{uri} has a broken safetensors header.") from error
    if size < end:
        raise TrainerFailure(FailureReason.MODEL_NOT_FOUND, f"{uri} is cut short: {size:,} of {end:,} bytes are there.")
    return sizes


def _shape(config: dict[str, Any], sizes: Sizes, uri: str) -> ModelShape:
    try:
        return model_shape(config, sizes)
    except ValueError as error:
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"The model in {uri}: {error}.") from error


def _tokenizer(folder: Path, uri: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken file makes it raise
        detail = str(error).replace(str(folder), uri).splitlines()
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED, f"The tokenizer in {uri} cannot be loaded: {next(iter(detail), '')[:300]}"
        ) from error
    if not tokenizer.is_fast:
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"The tokenizer in {uri} has no tokenizer.json.")
    return tokenizer


def _end_tokens(folder: Path, config: dict[str, Any], uri: str) -> tuple[int, ...]:
    generation = folder / "generation_config.json"
    settings = [config, _json(generation, uri) if generation.exists() else {}]
    found = [setting.get("eos_token_id") for setting in settings]
    flat = [token for value in found for token in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(token for token in flat if isinstance(token, int)))


def _json(path: Path, uri: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"{join(uri, path.name)} is not a JSON object.")
    return found
