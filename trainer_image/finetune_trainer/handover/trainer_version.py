"""The version of everything that turns rows into tokens and results: this program, the API with the defaults of the
spec, and the libraries below them."""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import finetune_api

LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "ftfy",
    "google-re2",
    "jinja2",
    "numpy",
    "peft",
    "phonenumbers",
    "pyarrow",
    "rensa",
    "tokenizers",
    "torch",
    "transformers",
)
_PACKAGES = (Path(__file__).parents[1], Path(finetune_api.__file__).parent)


@cache
def trainer_version() -> str:
    """Returns the sha256, as hexadecimal digits, of the source of the program and of the API, and of the versions of
    Python and of the libraries. A release number would not tell two builds apart."""
    digest = hashlib.sha256(platform.python_version().encode())
    for library in LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    for package in _PACKAGES:
        for path in sorted(package.rglob("*.py")):
            digest.update(f"{path.relative_to(package.parent)}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "is not installed"
