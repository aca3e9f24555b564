"""Configurations as they ship, with every default resolved, take the steps they took when these files were written.

After a change that is meant to change them: python -m tests.integration.finetune_trainer.proofs.test_golden"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from finetune_api.job import FineTuneJobSpec
from finetune_trainer.model import load_model
from finetune_trainer.resolve import resolve
from finetune_trainer.trainable import attach_lora
from tests.integration.finetune_trainer.proofs.runs import counting_rows, our_steps
from tests.unit.finetune_trainer.conftest import save_model

GOLDEN = Path(__file__).parent / "golden"
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {"type": "QLoRA"},
    "lora-attention": {"lora": {"r": 4, "alpha": 64, "targetModules": ["q_proj", "v_proj"]}},
}
LOSS, GRADIENT_NORM = 2e-3, 2e-2
"""Relative tolerances: bf16 rounds differently where a kernel adds up in another order."""


@pytest.mark.parametrize("name", METHODS)
def test_a_shipped_configuration_takes_the_steps_it_always_took(name: str, tiny_model_dir: Path) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    run = trajectory(METHODS[name], tiny_model_dir)
    assert run["learningRate"] == pytest.approx(golden["learningRate"], rel=1e-4)
    assert run["loss"] == pytest.approx(golden["loss"], rel=LOSS)
    assert run["gradientNorm"] == pytest.approx(golden["gradientNorm"], rel=GRADIENT_NORM)


def trajectory(method: dict[str, Any], model: Path) -> dict[str, list[float]]:
    """Six epochs over 40 rows, in bf16 as on a GPU."""
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "s3://models/tiny"},
            "method": method,
            "dataset": {"train": [{"uri": "s3://data/rows.jsonl"}]},
            "training": {"epochs": 6},
            "output": {"uri": "s3://models/tuned"},
        }
    )
    rows = counting_rows([7 + 53 * i % 50 for i in range(40)])
    settings = resolve(spec, 10_000, 64, "ChatTemplate", rows, rows[:4])
    base = load_model(model, settings.method, torch.device("cpu"))
    tuned = attach_lora(base, spec.method, spec.training.seed)
    steps = our_steps(tuned, rows, settings, mixed_precision="bf16", seed=spec.training.seed)
    return {
        "loss": [round(step.loss, 6) for step in steps],
        "gradientNorm": [round(step.gradient_norm, 6) for step in steps],
        "learningRate": [round(step.learning_rate, 9) for step in steps],
    }


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        save_model(Path(folder))
        for name, method in METHODS.items():
            (GOLDEN / f"{name}.json").write_text(json.dumps(trajectory(method, Path(folder)), indent=1) + "\n")
