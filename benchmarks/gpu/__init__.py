"""Measures the trainer on an NVIDIA GPU in nine minutes: `python -m benchmarks.gpu`, in a checkout without a network.

Weights are random, in the shapes of real models, and are created on the GPU. `__main__` reads the options and
supervises the measuring process. If a case crashes this process or does not end, `__main__` starts a new one. `worker`
runs the cases in the order of `plan`, which also has their seconds. `record` writes each figure immediately. A case is
a function that gets a `Bench` and yields figures. The modules with cases are `matmul`,
`correctness`, `backends`, `checkpoints`, `ranks`, `training`, `kernels`, `switches`, `memory`, `answers`."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if importlib.util.find_spec("finetune_trainer") is None:  # in a bare checkout
    sys.path[:0] = [str(ROOT / folder) for folder in ("crds", "trainer_image")]

BROKEN = 3
"""Exit code of a measuring process whose GPU answers nothing any more; another process goes on."""
