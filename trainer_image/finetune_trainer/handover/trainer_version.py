"""The version of everything that turns rows into tokens and results: this program and the libraries below it."""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
_PACKAGE = Path(__file__).parents[1]


@cache
def trainer_version() -> str:
    """Returns the sha256, as hexadecimal digits, of the program's source and of the versions of Python and of the
    libraries. A release number would not tell two builds apart."""
    digest = hashlib.sha256(platform.python_version().encode())
    for library in LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "is not installed"
