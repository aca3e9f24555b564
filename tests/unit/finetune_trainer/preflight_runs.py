"""Runs of preflight, and what each leaves behind: prepared data, a failure, a status."""

from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.status.job import FineTuneJobStatus
from finetune_trainer.handover.prepared import Prepared, read_prepared
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.scratch import scratch_folder
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.preflight.recipe import preflight
from finetune_trainer.storage.job_storage import JobStorage, open_storage


def run(bundle: Bundle) -> Prepared:
    """What preflight leaves for the attempts."""
    preflight(bundle, open_storage(bundle), StatusWriter(None, "preflight"))
    return read(bundle, open_storage(bundle))


def read(bundle: Bundle, storage: JobStorage) -> Prepared:
    """What an attempt reads; its rows outlive the folder, which is mapped already."""
    with scratch_folder("test-") as scratch:
        return read_prepared(storage, bundle, scratch)


def failure(bundle: Bundle) -> TrainerFailure:
    """Why preflight says no."""
    with pytest.raises(TrainerFailure) as caught:
        preflight(bundle, open_storage(bundle), StatusWriter(None, "preflight"))
    return caught.value


def written(capsys: pytest.CaptureFixture[str]) -> FineTuneJobStatus:
    """The status the pod would have written, from the line it prints outside Kubernetes."""
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("preflight: {")][-1]
    return FineTuneJobStatus.model_validate_json(line.removeprefix("preflight: "))


def with_dataset(bundle: Bundle, **parts: Any) -> Bundle:
    """The bundle with parts of its dataset replaced."""
    said = bundle.model_dump(mode="json", by_alias=True, exclude_none=True)
    said["spec"]["dataset"] |= parts
    return Bundle.model_validate(said)
