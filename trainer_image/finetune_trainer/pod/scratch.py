"""The folder a pod may fill: size-limited in Kubernetes, the system's own for temporary files elsewhere."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api import names


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A new folder whose name begins with `prefix`, removed in the end."""
    base = names.SCRATCH_FOLDER if Path(names.SCRATCH_FOLDER).is_dir() else None
    with tempfile.TemporaryDirectory(dir=base, prefix=prefix) as folder:
        yield Path(folder)
