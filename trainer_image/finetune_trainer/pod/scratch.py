"""The folder for temporary files: a volume with a size limit in Kubernetes, the system's temporary folder elsewhere."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api import names


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Creates a new folder whose name begins with `prefix`, and deletes it at the end."""
    base = names.SCRATCH_FOLDER if Path(names.SCRATCH_FOLDER).is_dir() else None
    with tempfile.TemporaryDirectory(dir=base, prefix=prefix) as folder:
        yield Path(folder)


def bytes_in(folder: Path) -> int:
    """Returns the size of all files below the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
