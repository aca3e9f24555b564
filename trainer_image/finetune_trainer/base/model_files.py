"""Selects the files of a model's folder that are used.

Only these files are inspected, and only these files are copied for Transformers and PEFT. Other files in the folder (an
adapter, checkpoints, pickles, code, a second copy of the weights) have no effect."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune_api.reasons import FailureReason
from finetune_trainer.base.composite import PROCESSOR, is_composite
from finetune_trainer.pod.at_once import each_at_once
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import quiet_work
from finetune_trainer.storage.files import PATIENCE_SECONDS
from finetune_trainer.storage.job_storage import JobStorage, join

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
TOKENIZER = (
    TOKENIZER_CONFIG,
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "tekken.json",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""All files from which Transformers loads the tokenizer of a causal language model or of a sentence model."""
CARD = "README.md"
"""The model card, which names the licence."""
SETTINGS = (CONFIG, GENERATION_CONFIG, *TOKENIZER, *PROCESSOR, CARD)
"""All files of a model that are used in addition to its weights."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights in one file, which Transformers prefers, and the index that names the shards of the weights."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""All files of an adapter that are used."""
REDIRECTIONS = {CONFIG: "configuration_files", TOKENIZER_CONFIG: "fast_tokenizer_files"}
"""Keys of a file with which Transformers reads another file instead, depending on its version."""
SAVE_AGAIN = "Load the model with Transformers, save it with save_pretrained, and use the saved model."
UNCHANGED = "Let nothing change the model's files while a job uses them."
"""Remedies that several findings share."""
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
LEFTOVERS = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
"""Beginnings of the names of files that trainers write next to a model. These files do not contain weights."""

_LEVELS = 3
"""How deep the folder of a model is looked at: snapshots/COMMIT/config.json is proposed where somebody names the
repository of the hub's cache. A volume can have millions of files below."""
Files = Mapping[str, int]
"""Size of each file in bytes, by its path in the folder."""
Pins = Mapping[str, str]
"""Identity of each file (JobStorage.identity), by its path in the folder. Two files of one size can differ."""


def fetch_settings(storage: JobStorage, uri: str, to: Path, more: Callable[[str], bool] = lambda path: False) -> Files:
    """Downloads the model's settings and tokenizer, and the files that `more` selects, to the folder `to`. Returns all
    files that are used, including the weights, which are not downloaded.

    Raises TrainerFailure ModelNotFound if a file is missing, and ModelUnsupported if the layout of the weights is not
    supported."""
    files = storage.list_folder(uri, _LEVELS)
    if CONFIG not in files:
        found, remedy = _instead(files, uri)
        raise TrainerFailure(FailureReason.MODEL_NOT_FOUND, f"There is no {CONFIG} in {uri}{found}.", remedy)
    settings = {path for path in files if path in SETTINGS or more(path)}
    storage.download_folder(uri, to, lambda path: path in {*settings, INDEX}, _LEVELS)
    for name, key in REDIRECTIONS.items():
        if (to / name).exists() and read_object(to / name, uri).get(key):
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"{join(uri, name)} has {key}, which makes Transformers read another file instead.",
                SAVE_AGAIN,
            )
    weights = _weights(files, to, uri)
    unused = () if is_composite(read_object(to / CONFIG, uri)) else PROCESSOR
    for path in (*unused, *({INDEX} - {*weights})):
        (to / path).unlink(missing_ok=True)
    return {path: files[path] for path in (*sorted(settings - {*unused}), *weights)}


def pin(storage: JobStorage, uri: str) -> Pins:
    """Returns the identity of each file of the folder that can be part of a model. Call it before the files are read:
    a file that is replaced afterwards then has another identity than its pin."""
    files = storage.list_folder(uri, 1)
    parts = (path for path in without_card(files) if path in (*SETTINGS, INDEX) or is_weights(path))
    return {path: storage.identity(join(uri, path)) for path in parts}


def without_card(files: Files) -> Files:
    """Returns the files that decide what the model computes. The licence in the model card changes no result, and model
    cards are edited."""
    return {path: size for path, size in files.items() if path != CARD}


def is_weights(path: str) -> bool:
    """Returns whether a file of the folder itself, not of a subfolder, contains weights."""
    return "/" not in path and path.endswith(".safetensors")


def copy_files(storage: JobStorage, uri: str, files: Files, to: Path, pins: Pins | None = None) -> None:
    """Downloads exactly `files` of the folder at `uri` to the folder `to`. Raises TrainerFailure ModelNotFound if one
    no longer exists, has another size, or is no longer the file of `pins`. The model card may be another one."""
    storage.download_folder(uri, to, lambda path: path in files, _LEVELS)
    for path, size in without_card(files).items():
        found = (to / path).stat().st_size if (to / path).exists() else None
        if found != size:
            now = "no longer exists" if found is None else f"now has {found:,} bytes"
            raise TrainerFailure(
                FailureReason.MODEL_NOT_FOUND,
                f"{join(uri, path)} had {size:,} bytes when preflight read it, and {now}.",
                UNCHANGED,
            )
    # After the download, so that no file is replaced between the comparison and the download.
    require_unchanged(storage, uri, pins or {})


def require_unchanged(storage: JobStorage, uri: str, pins: Pins) -> None:
    """Raises TrainerFailure ModelNotFound if a file of the folder at `uri` is not the one of `pins`. Raises the failure
    of the storage if the job may not read it."""

    def compare(path: str, needed: Callable[[], None] = lambda: None) -> None:
        needed()
        if storage.identity(join(uri, path)) != pins[path]:
            raise TrainerFailure(
                FailureReason.MODEL_NOT_FOUND, f"{join(uri, path)} was replaced after preflight had read it.", UNCHANGED
            )

    first, *others = pins or ("",)
    if first:
        compare(first)  # alone, because it connects to the storage
        with quiet_work(PATIENCE_SECONDS):
            each_at_once(compare, others)


def shards_of(files: Files) -> list[str]:
    """Returns the files that contain weights."""
    return [path for path in files if path.endswith(".safetensors")]


def weight_map(path: Path, uri: str) -> dict[str, str]:
    """Returns the shard of each tensor from the index at `path`. Raises TrainerFailure ModelUnsupported if the index
    names no shard, or a name that cannot be a file of the model's folder."""
    found = read_object(path, uri).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{join(uri, path.name)} has no weight_map that names the shards.",
            "Use a copy of the model in which the index and the shards belong together.",
        )
    for shard in found.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\]+\.safetensors", shard):
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"{join(uri, path.name)} names {json.dumps(shard)[:200]}, which is not a .safetensors file in the same "
                "folder.",
                "Use a copy of the model in which the index and its shards are in one folder, and the index names no "
                "folder.",
            )
    return found


def read_object(path: Path, uri: str) -> dict[str, Any]:
    """Returns the JSON object in a file that was downloaded from the folder `uri`. Raises TrainerFailure
    ModelUnsupported if the file is not a JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{join(uri, path.name)} is not a JSON object.",
            "Replace that file, or use an intact copy.",
        )
    return found


def _weights(files: Files, copied: Path, uri: str) -> list[str]:
    """Returns the files with weights, and their index if it is used."""
    named = read_object(copied / CONFIG, uri).get("transformers_weights")
    if named not in (None, WEIGHTS, INDEX):
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{join(uri, CONFIG)} names its weights in transformers_weights ({json.dumps(named)[:200]}).",
            SAVE_AGAIN,
        )
    chosen = named or (WEIGHTS if WEIGHTS in files else INDEX)
    if chosen not in files:
        found, remedy = _only(files, uri)
        raise TrainerFailure(FailureReason.MODEL_UNSUPPORTED, f"There is no {WEIGHTS} in {uri}{found}.", remedy)
    if WEIGHTS in files and INDEX in files:
        print(f"{uri} has both {WEIGHTS} and {INDEX}. {chosen} is used, as in Transformers.", flush=True)
    if chosen == WEIGHTS:
        return [WEIGHTS]
    shards = sorted(set(weight_map(copied / INDEX, uri).values()))
    if missing := [shard for shard in shards if shard not in files]:
        raise TrainerFailure(
            FailureReason.MODEL_NOT_FOUND,
            f"{join(uri, missing[0])} is missing. {INDEX} names {len(missing)} files that do not exist.",
            "Add the missing files, or use a complete copy of the model.",
        )
    return [INDEX, *shards]


def _instead(files: Files, uri: str) -> tuple[str, str | None]:
    """Returns what a folder without config.json contains, as the end of a sentence, and the remedy; None for the remedy
    of the reason."""
    if not files:
        return ": the folder is empty or does not exist", None
    if ADAPTER_CONFIG in files:
        return ", but an adapter", (
            "Set spec.model.uri to the adapter's base model. To continue training the adapter, set "
            "spec.method.lora.from to this folder."
        )
    folders = [path.removesuffix(f"/{CONFIG}") for path in sorted(files) if path.endswith(f"/{CONFIG}")]
    if folders:
        return f", but there is one in {join(uri, folders[0])}", "Use that folder."
    if "params.json" in files:
        return (
            ", but a params.json, as in the layout of Meta or Mistral",
            "Use the model in the layout of Transformers.",
        )
    return "", None


def _only(files: Files, uri: str) -> tuple[str, str | None]:
    """Returns what a folder without usable weights contains, as the end of a sentence, and the remedy; None for the
    remedy of the reason."""
    here = [path for path in sorted(files) if "/" not in path]
    parts = [path for path in here if SHARD.fullmatch(path) and not path.startswith("consolidated")]
    if parts:
        return _without_index(parts)
    others = [path for path in here if path.endswith(".safetensors")]
    if own := [path for path in others if path.startswith("consolidated")]:
        return f", only {own[0]}, which has the layout of Mistral with other names for the weights", (
            "Use the model in the layout of Transformers, or convert it with convert_mistral_weights_to_hf.py of "
            "Transformers."
        )
    if ADAPTER_WEIGHTS in others:
        return (
            ", only the weights of an adapter",
            "Add the base model's weights, or use another copy of the base model.",
        )
    if others:
        return (
            f", only {others[0]}",
            f"If that file is the whole model, rename it to {WEIGHTS}, in this folder or in a copy.",
        )
    below = [path for path in sorted(files) if path.endswith((f"/{WEIGHTS}", f"/{INDEX}"))]
    if below:
        return f", but there are weights in {join(uri, below[0].rpartition('/')[0])}", "Use that folder."
    other = next((path for path in here if path.endswith(OTHER_FORMATS) and not path.startswith(LEFTOVERS)), None)
    if other:
        return f", only {other}", SAVE_AGAIN
    return "", None


def _without_index(parts: list[str]) -> tuple[str, str]:
    """Returns the end of the sentence about shards without an index, and the remedy."""
    *_, total = SHARD.fullmatch(parts[0]).groups()  # type: ignore[union-attr]
    few = f", only {len(parts)} of {int(total)}" if len(parts) < int(total) else ""
    more = f" and {len(parts) - 1} more" * (len(parts) > 1)
    return f", only shards ({parts[0]}{more}{few}) without their index {INDEX}", (
        "Add the index to this folder or to a copy. Take it from the source of the model, or create it: a JSON object "
        "whose weight_map gives for each tensor the name of its shard. docs/training.md has the code."
    )
