"""The stand-in changes what its word or its environment says, and nothing else."""

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

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
    right, late = (run(tmp_path, f"{before}{SHOW}").stdout.split() for before in ("", "set_clock(3600.0); "))

    assert all(3590 < float(b) - float(a) < 3660 for a, b in zip(right, late, strict=True))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("gpu-out-of-memory", "OutOfMemoryError"),
        ("gpu-fault", "AcceleratorError"),
        ("loss-not-a-number", "nan"),
        ("", "2.0"),
    ],
)
def test_a_step_without_an_order_is_as_it_was_and_with_one_it_fails_as_ordered(
    tmp_path: Path, word: str, told: str
) -> None:
    if word:
        (tmp_path / stand_in.FILE).write_text(word)

    result = run(tmp_path, "print(fault(2.0))")

    assert told in result.stdout + result.stderr


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


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_attempt_rests(tmp_path: Path, first: bool) -> None:
    rests = f"from finetune_trainer.train import recipe; before = vars(recipe).copy(); prepare({first}); "
    show = "print(all(before[name] is not vars(recipe)[name] for name in CALLED_IN_PHASES), before == vars(recipe))"

    assert run(tmp_path, rests + show).stdout.split()[-2:] == [str(first), str(not first)]


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
