"""benchmarks/gpu.py at toy size on the CPU: all of it but the GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import gpu
from benchmarks.random_models import random_shape, trainable_model
from finetune_api import sizing

CPU = torch.device("cpu")
WITHOUT_BITSANDBYTES = """
import importlib.machinery, sys
found = importlib.machinery.PathFinder.find_spec
def hide(name, path=None, target=None):
    return None if name.split(".")[0] == "bitsandbytes" else found(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(hide)
from benchmarks.gpu import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_runs_without_bitsandbytes_and_says_what_is_left_out(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ["--device", "cpu", "--model", "toy", "--json", str(figures)]
    # Two threads would wait for each other wherever the machine does something else, the other tests for one.
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BITSANDBYTES, *options],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "bitsandbytes is missing: QLoRA and 8-bit optimizers are left out" in done.stderr
    found = json.loads(figures.read_text())
    assert [figure["method"] for figure in found["figures"]] == ["LoRA", "Full"]
    assert found["device"] == "cpu"
    for figure in found["figures"]:
        assert figure["tokens_per_second"] > 0
        assert figure["utilisation"] == pytest.approx(figure["tflops"] / found["matmul"])
        assert figure["predicted"] > sizing.CPU.runtime
    assert "toy LoRA" in done.stdout


def test_qlora_trains_over_four_bit_weights() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    adapters = [m for m in trainable_model("toy", "QLoRA", CPU, False).modules() if hasattr(m, "lora_A")]
    assert {type(adapter).__module__ for adapter in adapters} == {"peft.tuners.lora.bnb"}
    figure = gpu.run_case("toy", "QLoRA", CPU, limit=1.0, four_bit=True)
    assert figure
    assert (figure.method, figure.optimizer, figure.checkpointing) == ("QLoRA", "AdamW", False)
    assert figure.utilisation == figure.tflops > 0


def test_what_does_not_fit_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizing, "first_fit", lambda *_: None)
    assert gpu.run_case("toy", "Full", CPU, limit=1.0, four_bit=True) is None
    assert capsys.readouterr().out == "toy Full: left out, sizing says that it does not fit\n"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = importlib.util.find_spec

    def without_two(name: str, *package: Any) -> Any:
        return None if name in ("peft", "accelerate") else there(name, *package)

    monkeypatch.setattr(importlib.util, "find_spec", without_two)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "missing, install first: peft, accelerate\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "PyTorch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "parameters"), [("llama-3.1-8b", 8_030_261_248), ("qwen2.5-0.5b", 494_032_768)])
def test_the_models_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert random_shape(name).parameters == parameters
