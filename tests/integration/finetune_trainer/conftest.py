"""Whole trainings of tiny models need what the trainer's quicker tests have."""

from tests.unit.finetune_trainer.conftest import make_bundle, s3, tiny_model_dir

__all__ = ["make_bundle", "s3", "tiny_model_dir"]
