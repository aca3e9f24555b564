"""The configurations that ship in examples/, with every default resolved, take the steps they took when the files in
golden/ were written. A change of an example's recipe shows here as well as one of the trainer.

After a change that is meant to change them: python -m tests.integration.finetune_trainer.proofs.test_golden"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml

from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.job import FineTuneJobSpec
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.trainable import make_trainable
from finetune_trainer.preflight.resolve import resolve
from finetune_trainer.training.loop import training_steps
from tests.integration.finetune_trainer.proofs.runs import counting_rows
from tests.unit.finetune_trainer.conftest import save_model
from tests.unit.finetune_trainer.small_runs import fresh_accelerator

EXAMPLES = Path(__file__).parents[4] / "examples"
GOLDEN = Path(__file__).parent / "golden"
PARAMETERS = {
    "tickets/finetunejob.yaml": 135_000_000,
    "style.yaml": 7_600_000_000,
    "llama-3-8b-qlora.yaml": 8_000_000_000,
    "gemma-full.yaml": 2_500_000_000,
}
"""The examples, LoRA with every default, LoRA with dropout, QLoRA and Full, and how large the model of each is, which
decides the default learning rate."""
ROWS, STEPS = 240, 30
SMALLER = 16
"""What is run instead is a random model of 20,000 weights on rows of up to 56 tokens: in micro-batches that are smaller
by this factor, so that a step still has several, and at a rate that is higher by it, so that the loss moves."""
LOSS, GRADIENT_NORM = 2e-3, 2e-2
"""Tolerances, relative to the loss and to the largest norm: bf16 rounds differently where a kernel adds up in another
order. The kernels of oneDNN for AVX2, AVX-512 and AMX differ by 5e-4 and 9e-3 at most. Rounding errors do not get
smaller with the norm, so a small norm has larger ones relative to itself. The norms of QLoRA are compared only with
AVX-512, with which they were recorded: on other CPUs bitsandbytes unpacks weights in another way, and the norms of this
small model differ by up to a fifth of the largest. Its losses agree everywhere."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_example_configuration_gives_the_recorded_losses(name: str, tiny_model_dir: Path) -> None:
    golden = json.loads(golden_file(name).read_text())
    run = trajectory(name, tiny_model_dir)
    assert run["recipe"] == golden["recipe"], "the example says something else than it did"
    assert run["learningRate"] == pytest.approx(golden["learningRate"], rel=1e-4)
    assert run["loss"] == pytest.approx(golden["loss"], rel=LOSS)
    if golden["recipe"]["method"] != {"type": "QLoRA"} or torch.backends.cpu.get_cpu_capability() == "AVX512":
        norms = golden["gradientNorm"]
        assert run["gradientNorm"] == pytest.approx(norms, rel=0, abs=GRADIENT_NORM * max(norms))
    assert run["loss"][-1] < 0.99 * run["loss"][0], "a run that learns nothing proves nothing"


def trajectory(name: str, model: Path) -> dict[str, Any]:
    """The first steps of the job in examples/`name`, in bf16 as on a GPU."""
    manifest = yaml.safe_load((EXAMPLES / name).read_text())["spec"]
    spec = FineTuneJobSpec.model_validate(manifest)
    training = spec.training.model_copy(update={"max_steps": STEPS})
    rows = counting_rows([7 + 53 * i % 50 for i in range(ROWS)])
    settings = resolve(
        spec.model_copy(update={"training": training}),
        PARAMETERS[name],
        64,
        "ChatTemplate",
        (MetricName.LOSS,),
        train=rows,
        test=rows[:4],
    )
    settings = settings.model_copy(
        update={
            "micro_batch_tokens": settings.micro_batch_tokens // SMALLER,
            "learning_rate": settings.learning_rate * SMALLER,
        }
    )
    base = load_model(model, settings.method, torch.device("cpu"))
    tuned = make_trainable(base, spec.method, settings.method, training.seed)
    steps = list(training_steps(tuned, rows, training, settings, fresh_accelerator("bf16")))
    return {
        "recipe": {"method": manifest.get("method"), "training": manifest.get("training")},
        "loss": [round(step.loss, 6) for step in steps],
        "gradientNorm": [round(step.gradient_norm, 6) for step in steps],
        "learningRate": [round(step.learning_rate, 9) for step in steps],
    }


def golden_file(name: str) -> Path:
    """Where the steps of examples/`name` are kept."""
    return GOLDEN / f"{Path(name).parts[0].removesuffix('.yaml')}.json"


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        save_model(Path(folder))
        for name in PARAMETERS:
            golden_file(name).write_text(json.dumps(trajectory(name, Path(folder)), indent=1) + "\n")
