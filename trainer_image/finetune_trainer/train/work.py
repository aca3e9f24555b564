"""What every step of the training pod needs."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from finetune_api.bundle import Bundle
from finetune_trainer.base.model_files import copy_files
from finetune_trainer.checkpoints.identity import facts
from finetune_trainer.checkpoints.kept import KEPT, KeptResults
from finetune_trainer.checkpoints.result_facts import result_facts
from finetune_trainer.handover.fetch import said, take
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.model.batches import steps_per_epoch
from finetune_trainer.model.parameters.loading import choose_device, load_tokenizer, mixed_precision
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.ranks.group import slowest_node
from finetune_trainer.results.serving import Serving, serving_of
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.train.telling import TRAINED, tell
from finetune_trainer.training.run import Attempt
from finetune_trainer.training.training_progress import TrainingProgress, duration


@dataclass(frozen=True, eq=False)
class Work:
    """One attempt of a job, with the base model's files on the disk."""

    bundle: Bundle
    prepared: Prepared
    storage: JobStorage
    writer: StatusWriter
    attempt: Attempt
    accelerator: Accelerator
    progress: TrainingProgress
    tokenizer: PreTrainedTokenizerBase
    kept: KeptResults
    """Results of phases, which a later attempt takes over."""
    model_folder: Path
    """The files of the base model."""
    scratch: Path
    """A folder that is deleted at the end. All ranks of a pod share it."""

    @property
    def device(self) -> torch.device:
        """The device that trains."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def kept_training(self) -> KeptResults:
        """The results of the training alone. They are used wherever a checkpoint of the last step would be."""
        return self.kept.determined_by(facts(self.bundle, self.prepared))

    @property
    def output(self) -> Path:
        """The folder with the files to publish."""
        return self.scratch / "output"

    @property
    def serving(self) -> Serving:
        """The prompt format and settings for serving the tuned model."""
        return serving_of(self.prepared, self.tokenizer)

    def tell(self, reason: str, message: str) -> None:
        """Reports what the training does, in the log, in the condition Trained and in the progress."""
        tell(self.writer, TRAINED, reason, message, training=self.progress.training)


def begin(
    bundle: Bundle, prepared: Prepared, storage: JobStorage, writer: StatusWriter, attempt: Attempt, scratch: Path
) -> Work:
    """Downloads the base model. Raises TrainerFailure GPUFault without a usable device, and those of `copy_files`."""
    spec, resolved = bundle.spec, prepared.resolved
    device, device_name = choose_device(bundle.allow_cpu)
    precision = mixed_precision(resolved.method, spec.method.quantization)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    epoch = steps_per_epoch(len(prepared.train), spec.training.global_batch_size)
    progress = TrainingProgress(writer, attempt.number, device_name, resolved.total_steps, epoch)

    phase("downloading the base model")
    loading = f"Loading the base model {spec.model.uri}."
    tell(writer, TRAINED, "LoadingModel", loading, training=progress.training)
    model = scratch / "model"
    storage.pin(prepared.commits)
    progress.model_seconds = slowest_node(lambda: fetch_model(storage, spec.model.uri, prepared, model))
    determining, place = result_facts(bundle, prepared, device.type), join(work_prefix(bundle), KEPT)
    kept = KeptResults(storage, place, attempt.number, determining, scratch / "kept", progress.kept)
    tokenizer = load_tokenizer(model)
    return Work(bundle, prepared, storage, writer, attempt, accelerator, progress, tokenizer, kept, model, scratch)


def fetch_model(storage: JobStorage, uri: str, prepared: Prepared, folder: Path) -> float:
    """Puts the base model into `folder`: the one that was fetched before, or else a download. Returns the seconds that
    this took. Raises TrainerFailure as `copy_files` does."""
    if fetched := take(uri, prepared, folder):
        print(said(fetched), flush=True)
        return round(fetched.seconds, 1)
    started = perf_counter()
    copy_files(storage, uri, prepared.model_files, folder, prepared.model_pins)
    seconds = perf_counter() - started
    print(f"The base model was downloaded in {duration(seconds)}.", flush=True)
    return round(seconds, 1)
