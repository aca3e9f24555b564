"""What counts as another version of the trainer."""

import shutil
from pathlib import Path

import pytest

from finetune_trainer.handover import trainer_version as module
from finetune_trainer.handover.trainer_version import trainer_version


def test_another_default_of_the_spec_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = tuple(
        shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        for package in module._PACKAGES
    )
    monkeypatch.setattr(module, "_PACKAGES", copies)
    version = trainer_version.__wrapped__
    assert version() == trainer_version(), "the place of the files does not count"
    changed = tmp_path / "finetune_api" / "spec" / "method.py"
    text = changed.read_text()
    assert "alpha: Annotated[int, Field(ge=1, le=4096)] = 32" in text
    changed.write_text(text.replace("le=4096)] = 32", "le=4096)] = 16"))
    assert version() != trainer_version()
