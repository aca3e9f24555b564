"""An image of the trainer for faults that need hardware or luck: a GPU that fails, a loss that is no number, a hang. It
is the trainer with one function replaced, and nothing else of the image differs.

The fault comes when a test writes its word into the pod's file /tmp/chaos."""

from pathlib import Path

from devcluster import images

IMAGE = "localhost/finetune-trainer:chaos"
FILE = "chaos"
"""Name of the file in the pod's volume `tmp`."""
WORDS = ("gpu-out-of-memory", "gpu-fault", "hang", "loss-not-a-number")
_PLACE = "opt/chaos_trainer.py"
PROGRAM = '''
"""Stand-in for hardware: the trainer, whose optimizer step looks for a fault first."""

import sys
import time
from pathlib import Path

ORDER = Path("/tmp/chaos")


def fault(result):
    """Lets the ordered fault happen at this step; returns what the step gives otherwise."""
    word = ORDER.read_text() if ORDER.exists() else ""
    if word == "gpu-out-of-memory":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (a stand-in raised this).")
    if word == "gpu-fault":
        import torch

        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered (a stand-in raised this).")
    if word == "hang":
        time.sleep(10**6)
    return result * float("nan") if word == "loss-not-a-number" else result


def main():
    from finetune_trainer.__main__ import main as trainer

    if "train" in sys.argv[1:]:
        from finetune_trainer.training import loop

        real = loop.accumulate_gradients
        loop.accumulate_gradients = lambda *given, **more: fault(real(*given, **more))
    return trainer()


sys.exit(main())
'''


def write_image(folder: Path, pause: Path) -> Path:
    """Writes the archive of the image into `folder`. Returns its path."""
    layer = images.base_layer(pause, {_PLACE: PROGRAM.encode()})
    config = images.config([images.python(), f"/{_PLACE}"])
    images.write_images(folder / "chaos.tar", layer, {IMAGE: config})
    return folder / "chaos.tar"
