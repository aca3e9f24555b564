"""Images of the trainer for faults that need hardware or luck: a failing GPU, a wrong loss, a hang, a wrong clock.
Each is the trainer with one thing replaced, and nothing else of the image differs.

IMAGE: a fault comes when a test writes its word into the pod's file /tmp/chaos. LATE_IMAGE: the clock is an hour off.
Both write each step into a journal. The first attempt also rests in each phase, so that a fault can come in any of
them: without that, most phases of a tiny model take less than a second.
"""

from pathlib import Path

from devcluster import images

IMAGE, LATE_IMAGE = "localhost/finetune-trainer:chaos", "localhost/finetune-trainer:late"
LATE_SECONDS = 3600
FILE = "chaos"
"""Name of the file in the pod's volume `tmp`."""
JOURNAL = "steps"
"""Name of the journal in the same volume. Each line has the time of CLOCK_MONOTONIC and the step that is done."""
WORDS = ("gpu-out-of-memory", "gpu-fault", "hang", "loss-not-a-number", "slow")
_PLACE = "opt/chaos_trainer.py"
PROGRAM = '''
"""Stand-in for hardware: the trainer, whose optimizer step looks for a fault first, or whose clock is wrong. It writes
a journal of its steps, and the first attempt rests in each phase."""

import datetime
import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(33))  # as the trainer's own program does

ORDER, JOURNAL = Path("/tmp/chaos"), Path("/tmp/steps")
PHASE_SECONDS, STEP_SECONDS, SLOW_SECONDS = 4.0, 0.1, 1.0
CALLED_IN_PHASES = ("measure_base", "tune", "as_measured", "tell_assessment", "upload_results")
"""What the recipe calls while its phase is load, base evaluation, save, tuned evaluation and publish."""


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
    if word == "slow":
        time.sleep(SLOW_SECONDS)
    return result * float("nan") if word == "loss-not-a-number" else result


def after(pause, function):
    """Returns the function, which waits before it begins."""

    def waits(*given, **more):
        time.sleep(pause)
        return function(*given, **more)

    return waits


def journaled(stepped):
    """Returns the function that is told each step, which also writes it down."""

    def tells(step, *given):
        with JOURNAL.open("a") as file:
            file.write(f"{time.monotonic()} {step}\\n")
        return stepped(step, *given)

    return tells


def prepare(first):
    """Changes the trainer. `first`: whether this is the first attempt."""
    from finetune_trainer.train import recipe
    from finetune_trainer.training import loop

    real = loop.accumulate_gradients
    loop.accumulate_gradients = lambda *given, **more: fault(real(*given, **more))
    loop.stepped = journaled(loop.stepped)
    if first:
        loop.accumulate_gradients = after(STEP_SECONDS, loop.accumulate_gradients)
        for name in CALLED_IN_PHASES:
            setattr(recipe, name, after(PHASE_SECONDS, getattr(recipe, name)))


def set_clock(ahead):
    """Lets Python's clocks be `ahead` by so many seconds. Whoever asks the kernel itself sees the right time."""
    real, right = time.time, datetime.datetime

    class Late(right):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls):
            return cls.now(datetime.timezone.utc).replace(tzinfo=None)

    time.time, datetime.datetime = lambda: real() + ahead, Late


def main():
    if ahead := os.environ.get("CHAOS_CLOCK"):
        set_clock(float(ahead))
    from finetune_trainer.__main__ import end
    from finetune_trainer.__main__ import main as trainer

    if "train" in sys.argv[1:]:
        prepare(first=sys.argv[sys.argv.index("--attempt") + 1] == "1")
    end(trainer())


main()
'''


def write_archive(folder: Path, pause: Path) -> Path:
    """Writes the archive of the images into `folder`. Returns its path."""
    layer = images.base_layer(pause, {_PLACE: PROGRAM.encode()})
    config = images.config([images.python(), f"/{_PLACE}"])
    late = {**config, "Env": [*config["Env"], f"CHAOS_CLOCK={LATE_SECONDS}"]}
    images.write_images(folder / "chaos.tar", layer, {IMAGE: config, LATE_IMAGE: late})
    return folder / "chaos.tar"
