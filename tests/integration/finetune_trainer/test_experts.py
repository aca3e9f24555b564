"""Whole jobs over a model with experts, and runs that stop and go on."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from finetune_api.bundle import Bundle
from finetune_api.spec.method import Method, MethodType
from finetune_api.spec.training import Training
from finetune_trainer.checkpoints.training_state import live_state, restore
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.tensor_file import open_tensors
from finetune_trainer.model.parameters.trainable import make_trainable, trained_weights
from finetune_trainer.training.loop import Step, training_steps
from finetune_trainer.training.optimizer import make_optimizer
from tests.integration.finetune_trainer.trainings import prepare, run
from tests.unit.finetune_trainer.conftest import MakeBundle, save_tokenizer
from tests.unit.finetune_trainer.model_families import EXPERTS, Family, save_family
from tests.unit.finetune_trainer.small_runs import VOCABULARY, examples, fresh_accelerator, resolved

ROWS = examples([24, 7, 40, 12, 33, 18])
CPU = torch.device("cpu")


@pytest.fixture(params=EXPERTS, ids=lambda family: family.__name__)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a model of each family in turn, with a tokenizer."""
    family: Family = request.param
    folder = save_family(family, tmp_path / "model")
    save_tokenizer(folder)
    return folder


def job(make_bundle: MakeBundle, model: Path, output: Path, lora: dict[str, Any], **parts: Any) -> Bundle:
    training = {"learningRate": 0.01, "epochs": 2, "globalBatchSize": 4}
    method = {"type": "LoRA", "lora": {"r": 2} | lora}
    spec = {"method": method, "training": training, "model": {"uri": str(model)}} | parts
    return make_bundle(**spec, output={"uri": str(output), "merge": True})


def tuned_loss(bundle: Bundle) -> float:
    prepare(bundle)
    _, writer = run(bundle)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert writer.intent.evaluation
    assert writer.intent.evaluation.tuned
    assert writer.intent.evaluation.merged
    assert not writer.intent.evaluation.merged.changed
    return writer.intent.evaluation.tuned.loss or 0


@pytest.mark.thorough_for("olmoe", "mixtral", "gpt_oss")
def test_a_jobs_adapter_and_merged_weights_are_loaded_by_peft_and_transformers_and_go_on(
    make_bundle: MakeBundle, model: Path, tmp_path: Path
) -> None:
    first = tuned_loss(job(make_bundle, model, tmp_path / "first", {}))
    adapter, merged = tmp_path / "first" / "adapter", tmp_path / "first" / "merged"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert settings["target_parameters"] == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    assert "does not support PEFT's adapters of experts" in (adapter / "README.md").read_text()
    names, original = (set(load_file(folder / "model.safetensors")) for folder in (merged, model))
    assert names == original, "servers load the layout of the base model"
    tokens = torch.arange(4, 24)[None] % VOCABULARY
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(input_ids=tokens).logits
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        plain = base(input_ids=tokens).logits
        together = PeftModel.from_pretrained(base, adapter)(input_ids=tokens).logits
    rounded, changed = (whole - together).abs().mean(), (plain - together).abs().mean()
    assert rounded < 0.1 * changed, "up to the rounding of the merged weights to bf16"

    again, slowly = {"from": str(adapter)}, {"learningRate": 1e-6, "epochs": 1}  # otherwise it could learn it all anew
    second = tuned_loss(job(make_bundle, model, tmp_path / "second", again, training=slowly))
    assert second == pytest.approx(first, abs=0.01)


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.FULL])
def test_a_run_that_stops_and_goes_on_is_the_same_run_bit_for_bit(
    model: Path, method: MethodType, tmp_path: Path
) -> None:
    training, settings = Training(global_batch_size=3), resolved(method=method, total_steps=4)
    accelerator = fresh_accelerator("bf16")

    def made(seed: int) -> Any:
        tuned = make_trainable(load_model(model, method, CPU), Method(type=method), method, seed)
        return tuned, make_optimizer(tuned, training)

    def steps(tuned: Any, optimizer: Any, done: Sequence[Step] = ()) -> Iterator[Step]:
        return training_steps(tuned, ROWS, training, settings, accelerator, optimizer=optimizer, done=done)

    whole, half, resumed = made(0), made(0), made(1)
    all_steps, first = list(steps(*whole)), list(islice(steps(*half), 2))
    tensors, numbers = live_state(*half)
    (tmp_path / "state").write_bytes(open_tensors(tensors).read())
    restore(*resumed, tmp_path / "state", numbers)
    both = [*first, *steps(*resumed, done=first)]
    assert [step.loss for step in both] == [step.loss for step in all_steps]
    ours, theirs = trained_weights(resumed[0]), trained_weights(whole[0])
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert ours.keys() == theirs.keys()
