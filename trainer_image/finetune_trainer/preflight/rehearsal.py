"""Runs the rehearsal of the training (`finetune_trainer.model.rehearsal`) in a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.base.rehearsal import Answer, Request
from finetune_trainer.base.supported import PROVEN
from finetune_trainer.handover.prepared import ADAPTER
from finetune_trainer.pod.liveness.heartbeat import phase, quiet_work

Rehearse = Callable[[Request, Path], Answer]
"""Returns what the start of a training would raise. The folder is for temporary files."""
PATIENCE_SECONDS = 600.0
"""Most seconds of a rehearsal. It takes about ten: it imports PyTorch and computes nothing."""


def rehearse_start(rehearse: Rehearse, spec: FineTuneJobSpec, model: BaseModel, scratch: Path) -> Answer:
    """Rehearses the start of the training if that can find anything. Returns what it has found. `scratch`: has the
    folders of the model and of the adapter.

    Raises TrainerFailure if the training could not start."""
    answer = (
        rehearse(request_of(spec, model, scratch), scratch) if needs_rehearsal(spec, model.model_type) else Answer()
    )
    if answer.failure:
        raise answer.failure.failure()
    return answer


def request_of(spec: FineTuneJobSpec, model: BaseModel, scratch: Path) -> Request:
    """Returns the request for a job. `scratch`: has the folders of the model and of the adapter."""
    return Request(
        folder=str(scratch / "model"),
        headers={name: tuple(size) for name, size in model.headers.items()},
        method=spec.method,
        adapter=str(scratch / ADAPTER) if (scratch / ADAPTER).is_dir() else None,
        gradient_checkpointing=spec.training.gradient_checkpointing,
    )


def needs_rehearsal(spec: FineTuneJobSpec, model_type: str) -> bool:
    """Returns whether a rehearsal could find anything: the model is of a kind that no test of the trainer tunes, or the
    job chooses modules or an earlier adapter. Usual jobs save its ten seconds."""
    lora = spec.method.lora
    chosen = lora.modules_to_save or lora.from_ or lora.target_modules != ["all-linear"]
    return model_type not in PROVEN or bool(chosen and spec.method.type is not MethodType.FULL)


def unrehearsed(request: Request, scratch: Path) -> Answer:
    """Finds nothing: the training finds out."""
    return Answer()


def rehearse_apart(request: Request, scratch: Path) -> Answer:
    """Rehearses the training in another process, so that PyTorch stays out of the memory of preflight.

    A rehearsal that breaks off refuses no job, because it says nothing about the training."""
    phase("rehearsing the start of the training")
    asked, answered = scratch / "rehearsal.json", scratch / "rehearsed.json"
    asked.write_text(request.model_dump_json(by_alias=True))
    command = [sys.executable, "-m", "finetune_trainer.model.rehearsal", str(asked), str(answered)]
    try:
        with quiet_work(PATIENCE_SECONDS):
            code = subprocess.run(command, timeout=PATIENCE_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        code = None
    if code != 0 or not answered.exists():
        how = "took too long" if code is None else f"ended with exit code {code}"
        print(f"The rehearsal of the training {how}. The training checks the model again.", flush=True)
        return Answer()
    return Answer.model_validate_json(answered.read_bytes())
