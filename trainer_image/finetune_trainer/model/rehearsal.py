"""Rehearses the start of the training on a model without weights, before a GPU is held. It finds what config.json, the
headers of the weights and the spec decide. The functions are those that the training calls, on the meta device.

Preflight runs it as a process of its own (`python -m finetune_trainer.model.rehearsal REQUEST ANSWER`), because
preflight does not import torch."""

import json
import os
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # nothing is quantized, and it takes a second

import torch
from peft import PeftModel
from transformers.utils.logging import disable_progress_bar

from finetune_api.spec.method import MethodType
from finetune_api.spec.training import GradientCheckpointing
from finetune_trainer.base.rehearsal import Answer, Request
from finetune_trainer.model.parameters.loading import load_without_weights
from finetune_trainer.model.parameters.sharding import decoder_layers
from finetune_trainer.model.parameters.trainable import make_trainable, use_gradient_checkpointing
from finetune_trainer.pod.failure import TrainerFailure


def rehearse(request: Request) -> Answer:
    """Returns what the start of the training would raise, and whether the layers of the model are known.

    QLoRA is rehearsed without its quantization, which needs the weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the meta device keeps no weights
        return _rehearse(request)


def _rehearse(request: Request) -> Answer:
    method, folder = request.method, Path(request.folder)
    type = MethodType.FULL if method.type is MethodType.FULL else MethodType.LORA
    adapter = Path(request.adapter) if request.adapter else None
    try:
        base = load_without_weights(folder, request.headers)
        with torch.device("meta"):  # PEFT would fill a new adapter with random numbers first
            model = make_trainable(base, method, type, seed=0, adapter=adapter)
        if request.gradient_checkpointing is GradientCheckpointing.ENABLED and method.type is not MethodType.NONE:
            use_gradient_checkpointing(model, True)
    except TrainerFailure as failure:
        return Answer(failure=Answer.of(failure))
    try:
        decoder_layers(model.get_base_model() if isinstance(model, PeftModel) else model)
    except TrainerFailure:
        return Answer(layered=False)
    return Answer()


def main(request: Path, answer: Path) -> None:
    """Reads the request from a file, and writes the answer to another one."""
    disable_progress_bar()
    answer.write_text(rehearse(Request.model_validate(json.loads(request.read_bytes()))).model_dump_json())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
