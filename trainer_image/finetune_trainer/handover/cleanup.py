"""Deletes what a failed job has left in the storage."""

from finetune_api.bundle import Bundle
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.storage.job_storage import JobStorage

_MEGABYTE = 1_000_000


def cleanup(bundle: Bundle, storage: JobStorage) -> str:
    """Deletes the job's work folder, and nothing else. Returns a sentence with what was deleted.

    Can be repeated. Raises TrainerFailure if the storage does not answer or refuses it."""
    folder = work_prefix(bundle)
    sizes = storage.list_folder(folder)
    storage.delete_prefix(folder)
    megabytes = sum(sizes.values()) / _MEGABYTE
    return f"Deleted {len(sizes):,} object{'s' * (len(sizes) != 1)} ({megabytes:,.1f} MB) below {folder}."
