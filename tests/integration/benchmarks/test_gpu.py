"""The GPU benchmark with a toy model on the CPU."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import correctness, plan, training, worker
from benchmarks.gpu.bench import MATMUL, Bench
from benchmarks.gpu.plan import CASES, Case
from benchmarks.gpu.record import Figure, Record
from benchmarks.gpu.sizes import TOY
from benchmarks.random_models import random_shape, trainable_model

CPU = torch.device("cpu")
ROOT = Path(gpu.__file__).parents[2]
FLOOR = ROOT / "build" / "floor" / "venv" / "bin" / "python"
BARE = f"""
# What a machine with the needed packages and theirs has: no trainer installed, and none of its other libraries.
import importlib.machinery, sys
sys.path[:] = [folder for folder in sys.path if not folder.startswith({str(ROOT)!r}) or "site-packages" in folder]
HIDDEN = "bitsandbytes boto3 ftfy kopf kubernetes phonenumbers pyarrow re2 rensa sacrebleu trl".split()
found = importlib.machinery.PathFinder.find_spec
def hide(name, path=None, target=None):
    return None if name.split(".")[0] in HIDDEN else found(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(hide)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with only the files that are copied to a GPU machine."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "checkout" / name)
    return tmp_path / "checkout"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    return Bench(CPU, TOY, Record(tmp_path / "gpu.json"))


@pytest.mark.parametrize("python", [Path(sys.executable), FLOOR], ids=["newest", "oldest"])
def test_a_bare_checkout_measures_every_case_and_finds_everything_right(python: Path, checkout: Path) -> None:
    if not python.is_file():
        pytest.skip("make test-floor installs the oldest libraries")
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no AVX-512: products in bf16 take a hundred times longer, and the cases their limits")
    (checkout / "bare").mkdir()
    (checkout / "bare" / "sitecustomize.py").write_text(BARE)
    environment = os.environ | {"PYTHONPATH": "bare"}
    command = [python, "-m", "benchmarks.gpu", "--device", "cpu", "--model", "toy", "--json", "new/gpu.json"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=480, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((checkout / "new" / "gpu.json").read_text())
    assert list(found["cases"]) == [case.name for case in CASES]
    assert {name: case["left_out"] for name, case in found["cases"].items() if "left_out" in case} == {
        "QLoRA": "bitsandbytes is not installed"
    }
    assert all(case["figures"] for name, case in found["cases"].items() if name != "QLoRA")
    assert not [figure for case in found["cases"].values() for figure in case["figures"] if figure["right"] is False]
    lora = found["cases"]["LoRA"]["figures"][0]
    assert lora["value"] > 0
    share = lora["more"]["tflops"] / next(
        f["value"] for f in found["cases"]["matmul"]["figures"] if f["what"] == MATMUL
    )
    assert f"{share:.0%} of the measured matmul" in lora["beside"]
    assert f"torch {found['torch']}" in done.stdout
    assert "LoRA, 64 tokens a micro-batch, speed" in done.stdout


def test_qlora_trains_over_four_bit_weights(bench: Bench) -> None:
    adapters = [m for m in trainable_model("toy", "QLoRA", CPU, False).modules() if hasattr(m, "lora_A")]
    assert {type(adapter).__module__ for adapter in adapters} == {"peft.tuners.lora.bnb"}
    figure = next(training.qlora(bench))
    assert figure.what == "QLoRA, speed"
    assert figure.value > 0


def test_a_wrong_result_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = correctness.per_document_attention

    def without_window(*arguments: Any, **options: Any) -> Any:
        *others, _ = arguments
        return right(*others, None, **options)

    assert all(figure.right for figure in correctness._attention(bench))
    monkeypatch.setattr(correctness, "per_document_attention", without_window)
    wrong = {figure.what for figure in correctness._attention(bench) if not figure.right}
    assert wrong
    assert all("a window" in what for what in wrong)


def test_a_failed_case_is_named_with_its_message_and_the_next_one_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Bench) -> Iterator[Figure]:
        yield Figure("one", 1, "s")
        raise ValueError("no such kernel\nand more")

    def works(_: Bench) -> Iterator[Figure]:
        yield Figure("two", 2, "s")

    cases = [Case("first", 5, fails), Case("second", 5, works), Case("third", 500, works)]
    monkeypatch.setattr(worker, "CASES", cases)
    assert worker.work(bench.record, "cpu", TOY, time.monotonic() + 60) == 0
    found = Record(bench.record._path).content["cases"]
    assert found["first"]["error"] == "ValueError: no such kernel"
    assert [figure["what"] for figure in found["first"]["figures"]] == ["one"], "earlier figures are kept"
    assert [figure["what"] for figure in found["second"]["figures"]] == ["two"]
    assert found["third"]["left_out"].startswith("it needs up to 500 s, and only")
    assert "failed: ValueError: no such kernel" in capsys.readouterr().out


def stand_in(folder: Path, begun: str) -> str:
    """A program in the place of the measuring process: `begun` is what the first one does in its first case, and the
    second one measures."""
    program = folder / "worker.py"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from benchmarks.gpu.record import Figure, Record\n"
        "from pathlib import Path\n"
        "record = Record(Path(next(a for a in sys.argv if a.startswith('--json='))[7:]))\n"
        "record.note(planned=['first', 'second'])\n"
        "if not record.has('first'):\n"
        "    record.begin('first', 0.2)\n"
        f"    {begun}\n"
        "record.begin('second', 5)\n"
        "record.add('second', Figure('two', 2, 's'))\n"
        "record.end('second')\n"
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("begun", "sentence"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its process ended with exit code -11"),
        ("time.sleep(300)", "it had not ended after "),
        ("record.end('first', 'AcceleratorError: misaligned address'); sys.exit(3)", "AcceleratorError: misaligned"),
    ],
    ids=["crash", "hang", "broken GPU"],
)
def test_after_a_case_that_crashed_its_process_a_new_process_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, sentence: str
) -> None:
    path = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, begun))
    assert gpu.main(["--json", str(path), "--seconds", "60"]) == 1
    found = json.loads(path.read_text())["cases"]
    assert found["first"]["error"].startswith(sentence)
    assert found["second"]["figures"][0]["value"] == 2


def test_at_the_time_limit_the_running_case_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, began = tmp_path / "gpu.json", time.monotonic()
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, "record.begin('first', 1000); time.sleep(300)"))
    assert gpu.main(["--json", str(path), "--seconds", str(gpu.MARGIN + 3)]) == 1
    assert time.monotonic() - began < 200  # the case alone sleeps for 300
    found = json.loads(path.read_text())["cases"]
    assert found["first"]["error"] == "the time limit was reached"
    assert found["second"]["left_out"] == "the time limit was reached"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = importlib.util.find_spec

    def without_two(name: str, *package: Any) -> Any:
        return None if name in ("peft", "accelerate") else there(name, *package)

    monkeypatch.setattr(importlib.util, "find_spec", without_two)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "Packages are missing. Install them first: peft, accelerate\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_prints_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "PyTorch finds no GPU" in capfd.readouterr().err


def test_the_seconds_of_all_cases_are_nine_minutes() -> None:
    assert sum(case.seconds for case in plan.CASES) <= 540


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-3.1-8b", 8_030_261_248), ("qwen2.5-0.5b", 494_032_768), ("llama-3.2-1b", 1_235_814_400)],
)
def test_the_models_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert random_shape(name).parameters == parameters
