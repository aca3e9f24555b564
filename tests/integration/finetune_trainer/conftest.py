"""Whole trainings of tiny models need what the trainer's quicker tests have, and each a process's beginning."""

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.unit.finetune_trainer.conftest import make_bundle, s3, tiny_model_dir, unstopped

__all__ = ["make_bundle", "s3", "tiny_model_dir", "unstopped"]


@pytest.fixture(autouse=True)
def fresh_state() -> None:
    """Accelerate's state is one per process; each run here stands for a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
