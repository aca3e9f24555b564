"""What lies in a model's folder beside the model changes nothing: the commands as the pods run them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.bundle import Bundle
from tests.unit.finetune_trainer.conftest import MakeBundle


@pytest.fixture
def model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model with an adapter left in its folder, far from it."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    base = AutoModelForCausalLM.from_pretrained(folder)
    tuned = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    )
    tuned.save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").exists()
    return folder


def run(bundle: Bundle, folder: Path, *steps: str) -> str:
    """The log of the steps, each a process of its own."""
    path = folder / "bundle.json"
    path.write_text(bundle.model_dump_json(by_alias=True, exclude_none=True))
    log = ""
    for step in steps:
        done = subprocess.run(
            [sys.executable, "-m", "finetune_trainer", step, str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        log += done.stdout
    return log


@pytest.mark.thorough
def test_an_adapter_left_in_the_folder_is_not_attached(
    make_bundle: MakeBundle, model: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    found = {}
    for name, folder in (("left", model), ("clean", tiny_model_dir)):
        output = tmp_path / name / "output"
        bundle = make_bundle(
            model={"uri": str(folder)}, output={"uri": str(output), "merge": True}, training={"maxSteps": 2}
        )
        run(bundle, output.parent.parent, "preflight", "train")
        found[name] = json.loads((output / "manifest.json").read_text())["evaluation"]
        assert (output / "merged" / "model.safetensors").exists()
    assert found["left"]["base"]["loss"] == found["clean"]["base"]["loss"]
    assert found["left"]["tuned"]["loss"] == found["clean"]["tuned"]["loss"]


def test_under_full_the_whole_weights_are_published(make_bundle: MakeBundle, model: Path, tmp_path: Path) -> None:
    bundle = make_bundle(model={"uri": str(model)}, method={"type": "Full"}, training={"maxSteps": 2})
    run(bundle, tmp_path, "preflight", "train")
    published = Path(bundle.spec.output.uri) / "model"
    assert set(load_file(published / "model.safetensors")) == set(load_file(model / "model.safetensors"))
    assert not list(published.glob("adapter*"))


def test_a_verdict_says_where_no_answer_ends(make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    end, other = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["<|end|>", "<|start|>"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][end] = weights[name][other]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    parts: dict[str, Any] = {"model": {"uri": str(folder)}, "training": {"learningRate": 0.01}}
    bundle = make_bundle([{"prompt": f"Say yes {i}", "completion": "yes"} for i in range(60)], **parts)
    log = run(bundle, tmp_path, "preflight", "train")
    assert "EndOfTurnUntrained" in log
    verdict = json.loads((Path(bundle.spec.output.uri) / "manifest.json").read_text())["evaluation"]["verdict"]
    assert "No answer of the tuned model ended: all 12 were cut at" in verdict
    assert "never trained to end an answer. Set spec.method.lora.modulesToSave" in verdict
    assert "No answer of the tuned model" in (Path(bundle.spec.output.uri) / "report.html").read_text()
