"""The stand-in changes what its word or its environment says, and nothing else."""

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from tests.chaos.figures.judge import Done
from tests.chaos.harms import stand_in
from tests.chaos.watcher import read_journal

SHOW = "import time, datetime; print(time.time(), datetime.datetime.now(datetime.timezone.utc).timestamp())"


def run(tmp_path: Path, end: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the program with its last line replaced by `end`, and its orders in a folder of the test."""
    program = stand_in.PROGRAM.removesuffix("main()\n") + end
    for name in (stand_in.FILE, stand_in.JOURNAL):
        program = program.replace(f"/tmp/{name}", str(tmp_path / name))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


def test_a_clock_that_is_set_ahead_is_so_for_all_of_python(tmp_path: Path) -> None:
    right, late = run(tmp_path, f"{SHOW}; set_clock(3600.0); {SHOW}").stdout.splitlines()[-2:]

    assert all(3590 < float(b) - float(a) < 3660 for a, b in zip(right.split(), late.split(), strict=True))


STEPS = """
print(fault(2.0))
for word in ("", "gpu-out-of-memory", "gpu-fault", "loss-not-a-number", ""):
    with open({file!r}, "w") as file:
        file.write(word)
    try:
        print(fault(2.0))
    except Exception as error:
        print(type(error).__name__)
"""


def test_a_step_without_an_order_is_as_it_was_and_with_one_it_fails_as_ordered(tmp_path: Path) -> None:
    result = run(tmp_path, STEPS.format(file=str(tmp_path / stand_in.FILE)))

    told = ["2.0", "2.0", "OutOfMemoryError", "AcceleratorError", "nan", "2.0"]
    assert result.stdout.splitlines()[-6:] == told, result.stderr


def test_each_step_is_written_down_and_told_as_before(tmp_path: Path) -> None:
    tell = "tells = journaled(lambda step, total, seconds: print('told', step, total, seconds))"
    result = run(tmp_path, f"{tell}; tells(1, 9, 0.5); tells(2, 9, 0.5)")

    assert result.stdout.split("\n")[:2] == ["told 1 9 0.5", "told 2 9 0.5"], result.stderr
    before, journal = time.monotonic() - 60, read_journal((tmp_path / stand_in.JOURNAL).read_text(), 0.0)
    assert [done.step for done in journal] == [1, 2]
    assert before < journal[0].seconds <= journal[1].seconds < time.monotonic()


def test_a_line_that_is_being_written_is_left_out() -> None:
    assert read_journal("12.5 1\n13.0 2", 10.0) == [Done(2.5, 1)]
    assert read_journal("", 10.0) == []


def test_only_the_first_attempt_rests(tmp_path: Path) -> None:
    attempts = "from finetune_trainer.train import recipe; before = vars(recipe).copy(); " + "; ".join(
        f"prepare({first}); print({show})"
        for first, show in (
            (False, "before == vars(recipe)"),
            (True, "all(before[name] is not vars(recipe)[name] for name in CALLED_IN_PHASES)"),
        )
    )

    assert run(tmp_path, attempts).stdout.split()[-2:] == ["True", "True"]


def test_both_images_run_the_program_and_only_one_has_a_wrong_clock(tmp_path: Path) -> None:
    (tmp_path / "pause").write_bytes(b"binary")
    with tarfile.open(stand_in.write_archive(tmp_path, tmp_path / "pause")) as archive:
        read = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    configs = {
        entry["RepoTags"][0]: json.loads(read[entry["Config"]])["config"] for entry in json.loads(read["manifest.json"])
    }

    assert {name: "CHAOS_CLOCK=3600" in config["Env"] for name, config in configs.items()} == {
        stand_in.IMAGE: False,
        stand_in.LATE_IMAGE: True,
    }
