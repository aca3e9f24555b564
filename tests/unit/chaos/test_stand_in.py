"""The stand-in changes what its word or its environment says, and nothing else."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.chaos.harms import stand_in

SHOW = "import time, datetime; print(time.time(), datetime.datetime.now(datetime.timezone.utc).timestamp())"


def run(tmp_path: Path, end: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the program with its last line replaced by `end`, and its orders in a folder of the test."""
    program = stand_in.PROGRAM.replace("sys.exit(main())", end).replace("/tmp/chaos", str(tmp_path / "chaos"))
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
