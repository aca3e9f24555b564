"""Merging writes base plus adapter in bf16, and measures the written weights again."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method, MethodType
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.trainable import attach_lora
from finetune_trainer.model.row_losses import row_losses
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.results.merge import ANSWERED, MergedMeasured, MergeFolders, answered_rows, compare_merged, merge
from finetune_trainer.statistics.measurements import Answer, Measured
from tests.unit.finetune_trainer.conftest import MakeBundle, save_model, save_tokenizer
from tests.unit.finetune_trainer.model_families import Family, falcon, falcon_h1, save_family
from tests.unit.finetune_trainer.small_runs import examples, fresh_accelerator, measured, results

ROWS = examples([20] * 8)
CPU = torch.device("cpu")


def save_adapter(base: Path, folder: Path, scale: float, targets: Sequence[str] = ("all-linear",)) -> PeftModel:
    """Saves an adapter that changes the answers of the model in `base`. Returns the model with the adapter."""
    method = Method.model_validate({"lora": {"r": 4, "targetModules": list(targets)}})
    model = attach_lora(load_model(base, MethodType.LORA, CPU), method, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


def side_by_side(model: PeftModel) -> Measured:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        losses, labels = row_losses(model.eval(), ROWS, 512)
    return Measured(losses, labels, measured([0] * len(ROWS), [False] * len(ROWS)).answers, 1.0)


@pytest.fixture
def merged(make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The folder of a merged model that was measured to be the same as base plus adapter."""
    tuned = side_by_side(save_adapter(tiny_model_dir, tmp_path / "adapter", 1.0))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    prepared = results(make_bundle()).prepared
    folders = MergeFolders(tiny_model_dir, tmp_path / "adapter", tmp_path / "merged")
    found = merge(folders, tuned, ROWS, prepared, tokenizer, fresh_accelerator(), 64)
    assert not found.changed
    assert abs(found.loss_change) < 5e-3
    assert found.rows == len(ROWS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        base = row_losses(load_model(tiny_model_dir, MethodType.LORA, CPU), ROWS, 512)[0]
    assert np.abs((base - tuned.losses) / tuned.labels).max() > 0.1, "the adapter changes the losses"
    return tmp_path / "merged"


@pytest.mark.parametrize("family", [falcon, falcon_h1])
def test_a_model_that_cannot_pack_rows_is_merged_like_any_other(
    family: Family, make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = save_family(family, tmp_path / "base")
    tuned = side_by_side(save_adapter(base, tmp_path / "adapter", 0.2))
    prepared, tokenizer = results(make_bundle()).prepared, AutoTokenizer.from_pretrained(tiny_model_dir)
    folders = MergeFolders(base, tmp_path / "adapter", tmp_path / "merged")
    assert not merge(folders, tuned, ROWS, prepared, tokenizer, fresh_accelerator(), 64).changed


def test_the_merged_weights_are_bfloat16_without_an_adapter(merged: Path) -> None:
    weights = load_file(merged / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert not [name for name in weights if "lora" in name]


def test_it_loads_like_any_model_with_the_settings_of_the_evaluation(merged: Path, tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert (model.generation_config.do_sample, model.generation_config.eos_token_id) == (False, [3])
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (merged, tiny_model_dir))
    assert config["architectures"] == original["architectures"]
    assert str(tiny_model_dir) not in "".join(path.read_text() for path in merged.glob("*.json"))
    assert AutoTokenizer.from_pretrained(merged).chat_template


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_tied_head_or_embedding_with_an_adapter_is_untied(
    target: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    base = tmp_path / "tied"
    save_tokenizer(base)
    save_model(base, tie_word_embeddings=True)
    tuned = side_by_side(save_adapter(base, tmp_path / "adapter", 0.3, [target, "q_proj"]))
    prepared, tokenizer = results(make_bundle()).prepared, AutoTokenizer.from_pretrained(base)
    folders = MergeFolders(base, tmp_path / "adapter", tmp_path / "merged")
    found = merge(folders, tuned, ROWS, prepared, tokenizer, fresh_accelerator(), 64)
    assert not found.changed, found.message


def test_weights_that_are_not_finite_end_the_job(make_bundle: MakeBundle, tiny_model_dir: Path, tmp_path: Path) -> None:
    tuned = side_by_side(save_adapter(tiny_model_dir, tmp_path / "adapter", float("inf")))
    prepared, tokenizer = results(make_bundle()).prepared, AutoTokenizer.from_pretrained(tiny_model_dir)
    folders = MergeFolders(tiny_model_dir, tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(TrainerFailure, match="not finite") as caught:
        merge(folders, tuned, ROWS, prepared, tokenizer, fresh_accelerator(), 64)
    assert caught.value.reason is FailureReason.LOSS_DIVERGED


def compared(loss: float, matches: Sequence[bool], four_bit: bool = False) -> tuple[bool, str]:
    """Compares with a tuned model that has loss 1 and answers every row word for word."""
    tuned = measured([1.0] * len(matches), [True] * len(matches))
    answers = [Answer("", truncated=False, matches=match) for match in matches]
    found = compare_merged(tuned, MergedMeasured(loss * tuned.labels, range(len(matches)), answers), four_bit)
    return found.changed, found.message


def test_the_message_has_the_change_and_the_tolerance() -> None:
    assert compared(1.009, [True] * 50) == (
        False,
        "Merging changed the loss by +0.0090 nats per token and exact match on 50 rows by +0 points. The change is "
        "within the tolerance of 0.01 nats per token and 5 points.",
    )
    changed, message = compared(1.02, [True] * 50)
    assert changed
    assert message == (
        "Merging changed the loss by +0.0200 nats per token and exact match on 50 rows by +0 points. The change "
        "exceeds the tolerance of 0.01 nats per token and 5 points. Serve the adapter over the base model, or measure "
        "the merged weights on your own task before you use them."
    )
    changed, message = compared(1.02, [True] * 50, four_bit=True)
    assert "Serve the adapter over the 4-bit base model, as in the evaluation, or" in message
    changed, message = compared(0.9, [True] * 50)
    assert changed
    assert message.endswith("5 points. The merged model is better.")
    assert compared(1.0, [True] * 48 + [False] * 2)[0] is False
    assert compared(1.0, [True] * 47 + [False] * 3)[0] is True


def test_rows_without_answers_are_compared_by_their_loss() -> None:
    tuned = measured([1.0] * 4, [True] * 4)
    found = compare_merged(replace(tuned, answers=[]), MergedMeasured(1.001 * tuned.losses, [], []))
    assert (found.rows, found.exact_match, found.exact_match_change) == (0, None, None)
    assert found.message == (
        "Merging changed the loss by +0.0010 nats per token. The change is within the tolerance of 0.01 nats per token."
    )
    assert answered_rows(0) == []


@pytest.mark.parametrize("rows", [1, 7, 50, 51, 999])
def test_the_rows_that_the_merged_model_answers_are_spread_evenly(rows: int) -> None:
    found = answered_rows(rows)
    assert len(set(found)) == len(found) == min(rows, ANSWERED)
    assert 0 <= min(found) <= max(found) < rows
    assert max(np.diff([*found, rows])) <= rows // len(found) + 1
