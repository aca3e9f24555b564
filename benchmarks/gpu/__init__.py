"""The trainer on an NVIDIA GPU, in eight minutes: `python -m benchmarks.gpu`, from a checkout without a network.

Weights are random, in the shapes of real models, and made on the GPU. `__main__` reads the options and watches over
the process that measures: it starts another one where a case takes the process down, or does not end. `worker` runs the
cases in their order, which `plan` lists with their seconds; `record` writes each figure as it is known. A case is a
function of a `Bench`, what is measured on, and yields its figures: `matmul`, `correctness`, `training`, `kernels`,
`switches`, `memory`, `answers`."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if importlib.util.find_spec("finetune_trainer") is None:  # in a bare checkout
    sys.path[:0] = [str(ROOT / folder) for folder in ("crds", "trainer_image")]

BROKEN = 3
"""Exit code of a measuring process whose GPU answers nothing any more; another process goes on."""
